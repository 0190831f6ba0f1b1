"""A Hugging Face checkpoint folder to parameters, and back.

Reads config.json and safetensors (one file, or several with an index), in float32, float16 or
bfloat16; carries tokenizer and generation files along untouched. Runs no code of the folder and
reads no pickles.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from bilevel import sharding
from bilevel.apps.llm import config_json, decoder, names
from bilevel.apps.llm.config import Config, Layers
from bilevel.apps.llm.needs import needs

Place = Callable[[names.Path, np.ndarray], Any]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Checkpoint:
    """A model with what its folder says about it.

    Args:
        params: the tree of `bilevel.apps.llm.decoder`.
        about: config.json as it was read.
        files: tokenizer and generation files by name, carried along to the next folder.
    """

    config: Config
    params: decoder.Params
    about: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


def new(config: Config, params: decoder.Params) -> Checkpoint:
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
    files = {name: (folder / name).read_bytes() for name in CARRIED if (folder / name).is_file()}
    if "tokenizer.json" in files:
        check_tokenizer(files["tokenizer.json"], config)
    with_files = _Folder(folder)
    params = assemble(config, with_files, dtype=dtype, layers=layers, place=place)
    return Checkpoint(config, params, about, files)


def save(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: float = 5e9,
) -> None:
    """Write a folder that transformers, and `load`, read.

    Where several processes hold parts of the parameters, all must call; the first one writes.

    Args:
        dtype: of the tensors; that of the parameters when absent.
        shard_bytes: the largest file of weights; more make several files and an index.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: the parameters are not those of the configuration, or hold an adapter.
    """
    folder = Path(folder)
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if any(sharding.any_process((taken,))):
        raise FileExistsError(f"{folder} exists and is not empty; give the name of a new folder.")
    config, params = checkpoint.config, checkpoint.params
    _check_params(config, params)
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    shards = _write_tensors(folder, config, params, dtype, shard_bytes, writes)
    if not writes:
        return
    kind = str(np.dtype(dtype) if dtype is not None else params["embed"].dtype)
    about = {key: value for key, value in checkpoint.about.items() if key != "auto_map"}
    about["dtype" if "dtype" in about else "torch_dtype"] = kind
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    for name, content in checkpoint.files.items():
        (folder / name).write_bytes(content)
    if len(shards) > 1:
        where = {name: file for file, (named, _) in shards.items() for name in named}
        total = sum(size for _, size in shards.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def check_tokenizer(content: bytes, config: Config) -> None:
    """Refuse a tokenizer.json that gives tokens the embedding has no row for."""
    from bilevel.apps.llm.tokenizer import size_of

    size = size_of(content)
    if size > config.vocab_size:
        raise ValueError(
            f"tokenizer.json has tokens up to {size - 1}, but the model's vocabulary has "
            f"{config.vocab_size}. The tokenizer belongs to another model, or the embedding was "
            "not resized after tokens were added."
        )


# --- reading -------------------------------------------------------------------------------


class Source(Protocol):
    """Tensors by the names of a Hugging Face file."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> np.ndarray: ...


def assemble(
    config: Config,
    source: Source,
    *,
    dtype: DTypeLike | None,
    layers: Layers,
    place: Place | None,
) -> decoder.Params:
    """Check the tensors of a source against a configuration, read and place them."""
    wanted = names.tensors(config)
    _check_tensors(config, wanted, source)
    put = place or (lambda path, array: jnp.asarray(array))

    def read(tensor: names.Tensor) -> Iterator[tuple[names.Path, np.ndarray]]:
        array = source.read(tensor.name)
        array = array if dtype is None else array.astype(dtype)
        yield from zip(tensor.leaves, tensor.split(array), strict=True)

    leaves = {}
    if layers is Layers.LIST:
        for tensor in wanted:
            leaves |= {path: put(path, array) for path, array in read(tensor)}
        return _tree(leaves)
    groups: dict[names.Path, list[names.Tensor]] = {}  # the same tensor of every layer
    for tensor in wanted:
        groups.setdefault(_without_number(tensor.leaves[0]), []).append(tensor)
    for group in groups.values():
        rows = [list(read(tensor)) for tensor in group]
        for same in zip(*rows, strict=True):
            path, arrays = _without_number(same[0][0]), [array for _, array in same]
            leaves[path] = put(path, np.stack(arrays) if path[0] == "layers" else arrays[0])
    return _tree(leaves)


class _Folder:
    """The safetensors of a folder."""

    def __init__(self, folder: Path):
        self.where = str(folder)
        self._files = _weight_files(folder)  # tensor -> file
        self._open = {file: open_tensors(file) for file in sorted(set(self._files.values()))}
        for name, file in self._files.items():
            if name not in self._open[file].keys():  # noqa: SIM118 - not a dictionary
                raise ValueError(f"{INDEX} says that {file.name} holds {name}, which it does not.")

    def shapes(self):
        return {
            name: tuple(self._open[file].get_slice(name).get_shape())
            for name, file in self._files.items()
        }

    def read(self, name: str) -> np.ndarray:
        file = self._open[self._files[name]]
        kind = file.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise ValueError(
                f"{name} in {self.where} is of type {kind}; one of {sorted(FLOATS)} is needed. "
                "Quantized weights are read from GGUF only."
            )
        return file.get_tensor(name)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    index = folder / INDEX
    if index.is_file():
        found = read_json(index, folder).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise ValueError(f"{index} has no weight_map.")
        for name in found.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(
                    f"{index} names the file {name!r}; a file of its folder is needed."
                )
        for name in sorted(set(found.values())):
            if not (folder / name).is_file():
                have = sorted(path.name for path in folder.glob("*.safetensors"))
                raise FileNotFoundError(
                    f"{folder} has no {name}, which {INDEX} names: a shard is missing. It has "
                    f"{have}; copy the folder again."
                )
        return {name: folder / file for name, file in found.items()}
    single = folder / SINGLE
    if single.is_file():
        return dict.fromkeys(open_tensors(single).keys(), single)
    here = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in here if name.endswith(PICKLED)]
    if pickled:
        raise ValueError(
            f"{folder} holds pickled weights ({', '.join(pickled)}), which can run any code and "
            "are not read. Save them again with save_pretrained(folder, safe_serialization=True)."
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}; it has {here}.")


def open_tensors(file: Path):
    safetensors = needs("safetensors")
    needs("ml_dtypes")  # numpy reads bfloat16 only once it is there
    try:
        return safetensors.safe_open(str(file), framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is not a safetensors file, or is cut off ({error}); copy it again."
        ) from error


def read_json(file: Path, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    if not file.is_file():
        here = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} has no {file.name}; it has {here}.")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; an object is needed.")
    return found


def _check_tensors(config: Config, wanted: list[names.Tensor], source: Source) -> None:
    shapes = source.shapes()
    missing = [tensor.name for tensor in wanted if tensor.name not in shapes]
    if missing:
        tied = " Is it tied? Then config.json must say so." if _head(config) in missing else ""
        raise ValueError(f"{source.where} lacks {_few(missing)}, which config.json asks for.{tied}")
    for tensor in wanted:
        if shapes[tensor.name] != tensor.shape:
            rows, first = shapes[tensor.name][0], tensor.shape[0]
            vocabulary = tensor.leaves[0][0] in ("embed", "head") and rows != first
            words = f" The vocabulary is {rows} there and {first} here." if vocabulary else ""
            raise ValueError(
                f"{tensor.name} in {source.where} has shape {shapes[tensor.name]}; config.json "
                f"asks for {tensor.shape}.{words}"
            )
    known = {tensor.name for tensor in wanted}
    extra = [name for name in shapes if name not in known and not names.known_extra(name)]
    if config.tied and _head(config) in extra:
        embed = names.NAMES[config.family][0]["embed"]
        if not np.array_equal(source.read(_head(config)), source.read(embed)):
            raise ValueError(
                f"config.json says that head and embedding are tied, but {source.where} holds a "
                f"{_head(config)} that differs from {embed}. Set tie_word_embeddings to what is "
                "meant."
            )
        extra.remove(_head(config))
    if extra:
        raise ValueError(
            f"{source.where} holds {_few(extra)}, for which a {config.family.value} model with "
            "this config.json has no place."
        )


def _head(config: Config) -> str:
    return names.NAMES[config.family][0]["head/kernel"]


def _few(found: list[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _without_number(path: names.Path) -> names.Path:
    return (path[0], *path[2:]) if path[0] == "layers" else path


def _tree(leaves: dict[names.Path, Any]) -> dict[str, Any]:
    """Nested dictionaries, and a list of layers where they are numbered."""
    tree: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    if 0 in tree["layers"]:
        tree["layers"] = [tree["layers"][i] for i in range(len(tree["layers"]))]
    return tree


# --- writing -------------------------------------------------------------------------------


def _check_params(config: Config, params: decoder.Params) -> None:
    wanted = dict(decoder.paths(decoder.shapes_of(config, decoder.layout_of(params))))
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    found = {tuple(decoder.name_of(key) for key in path): leaf.shape for path, leaf in flat}
    if any(path[-1] in ("a", "b") for path in found):
        raise ValueError("the parameters hold an adapter; give those of lora.merge instead.")
    if found != wanted:
        wrong = sorted("/".join(map(str, path)) for path, _ in found.items() ^ wanted.items())
        raise ValueError(f"the parameters do not fit the configuration at {_few(wrong)}.")


def _write_tensors(
    folder: Path, config: Config, params, dtype, shard_bytes: float, writes: bool
) -> dict[str, tuple[list[str], int]]:
    """Write shard after shard; returns the tensors and bytes of each file."""
    all_tensors = names.tensors(config)
    kind = np.dtype(dtype) if dtype is not None else None

    def bytes_of(tensor):
        leaf = _leaf(params, tensor.leaves[0])
        return int(np.prod(tensor.shape)) * (kind or leaf.dtype).itemsize

    shards: list[list[names.Tensor]] = [[]]
    filled = 0
    for tensor in all_tensors:
        if shards[-1] and filled + bytes_of(tensor) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += bytes_of(tensor)
    written = {}
    for i, shard in enumerate(shards):
        single = len(shards) == 1
        file = SINGLE if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for tensor in shard:
            array = _array(params, tensor, kind)  # on all processes, since each holds a part
            arrays |= {tensor.name: array} if writes else {}
        if writes:
            needs("safetensors.numpy").save_file(arrays, folder / file, metadata={"format": "pt"})
        written[file] = (list(arrays), sum(array.nbytes for array in arrays.values()))
    return written


def _array(params, tensor: names.Tensor, dtype: np.dtype | None) -> np.ndarray:
    """One tensor, on this process."""
    array = tensor.join([fetch(_leaf(params, path)) for path in tensor.leaves])
    return np.ascontiguousarray(array if dtype is None else array.astype(dtype))


def _leaf(params, path: names.Path):
    """A leaf of a list of layers, or a row of stacked ones."""
    if path[0] != "layers" or decoder.layout_of(params) is Layers.LIST:
        node = params
        for key in path:
            node = node[key]
        return node
    _, number, *rest = path
    node = params["layers"]
    for key in rest:
        node = node[key]
    return node[number]


def fetch(leaf) -> np.ndarray:
    """All of an array, which may lie on the devices of several processes."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
