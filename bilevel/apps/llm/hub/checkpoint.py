"""A Hugging Face checkpoint folder to parameters, and back.

Reads config.json and safetensors (one file, or several with an index), in float32, float16 or
bfloat16; carries tokenizer and generation files along untouched. Runs no code of the folder and
reads no pickles.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from bilevel import sharding
from bilevel.apps.llm.hub import config_json, folders
from bilevel.apps.llm.hub.assemble import Place, assemble
from bilevel.apps.llm.hub.tensor_files import INDEX, SINGLE, Folder, read_json
from bilevel.apps.llm.hub.write import check_params, write_tensors
from bilevel.apps.llm.models import parameters
from bilevel.apps.llm.models.config import Config, Layers

CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model with what its folder says about it.

    Args:
        params: the tree of `bilevel.apps.llm.models.decoder`.
        about: config.json as it was read.
        files: tokenizer and generation files by name, carried along to the next folder.
    """

    config: Config
    params: parameters.Params
    about: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


def new(config: Config, params: parameters.Params) -> Checkpoint:
    """A checkpoint of a model made from scratch."""
    return Checkpoint(config, params, config_json.write(config))


def load(
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    layers: Layers = Layers.LIST,
    place: Place | None = None,
) -> Checkpoint:
    """Read a folder as `save_pretrained` of transformers writes it.

    Args:
        dtype: of the parameters; as in the files when absent.
        place: `place(path, array) -> leaf` puts each leaf where it belongs as it is read, so that
            a model need not fit in one place; `path` is like `("layers", 3, "query", "kernel")`,
            without the number for `Layers.SCAN`. `sharding.placer` makes one for a mesh.

    Raises:
        FileNotFoundError: no such folder, no config.json, no weights, or a missing shard.
        ValueError: pickled weights; an unknown `model_type`, RoPE kind or activation; tensors
            missing, unknown or of another shape than config.json says; a tokenizer with more
            tokens than the model.
        ImportError: safetensors is not installed.
    """
    folder = Path(folder)
    about = read_json(folder / "config.json", folder)
    config = config_json.read(about)
    if about.get("transformers_weights") is not None:
        raise ValueError(
            f"config.json names the file of its weights in transformers_weights; rename that to "
            f"{SINGLE}, and remove the entry."
        )
    files = {name: (folder / name).read_bytes() for name in CARRIED if (folder / name).is_file()}
    if "tokenizer.json" in files:
        check_tokenizer(files["tokenizer.json"], config)
    with_files = Folder(folder)
    params = assemble(config, with_files, dtype=dtype, layers=layers, place=place)
    return Checkpoint(config, params, about, files)


def save(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: float = 5e9,
    also: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Write a folder that transformers, and `load`, read.

    The folder is whole or absent at any moment, see `folders.new_folder`. Where several processes
    hold parts of the parameters, all must call; the first one writes.

    Args:
        dtype: of the tensors; that of the parameters when absent.
        shard_bytes: the largest file of weights; more make several files and an index.
        also: `also(folder)` writes what else belongs into the folder.

    Raises:
        FileExistsError: the folder holds something.
        OSError: the disk is full, or cannot be written; nothing is left.
        ValueError: the parameters are not those of the configuration, hold an adapter, or do not
            fit into the range of `dtype`.
    """
    folder = Path(folder)
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if any(sharding.any_process((taken,))):
        raise FileExistsError(f"{folder} exists and is not empty; give the name of a new folder.")
    config, params = checkpoint.config, checkpoint.params
    check_params(config, params)
    if jax.process_index() != 0:
        write_tensors(None, config, params, dtype, shard_bytes)
        return
    kind = str(np.dtype(dtype) if dtype is not None else params["embed"].dtype)
    about = {key: value for key, value in checkpoint.about.items() if key != "auto_map"}
    about["dtype" if "dtype" in about else "torch_dtype"] = kind
    with folders.new_folder(folder) as part:
        shards = write_tensors(part, config, params, dtype, shard_bytes)
        _write_json(part / "config.json", about)
        for name, content in checkpoint.files.items():
            (part / name).write_bytes(content)
        if len(shards) > 1:
            where = {name: file for file, (named, _) in shards.items() for name in named}
            total = sum(size for _, size in shards.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            _write_json(part / INDEX, index)
        also(part)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_tokenizer(content: bytes, config: Config) -> None:
    """Refuse a tokenizer.json that gives tokens the embedding has no row for."""
    from bilevel.apps.llm.hub.tokenizer import size_of

    size = size_of(content)
    if size > config.vocab_size:
        raise ValueError(
            f"tokenizer.json has tokens up to {size - 1}, but the model's vocabulary has "
            f"{config.vocab_size}. The tokenizer belongs to another model, or the embedding was "
            "not resized after tokens were added."
        )
