"""The files of a checkpoint folder: config.json, and tensors in files of safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from bilevel.files.arrays import share
from bilevel.files.needs import needs

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


FLOATS = {"F64", "F32", "F16", "BF16"}


class Folder:
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
    """Which file holds which tensor. A single file goes before an index, as in transformers."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return dict.fromkeys(open_tensors(single).keys(), single)
    if index.is_file():
        shards = {name: _shard(folder, name) for name in sorted(shard_names(index))}
        return {tensor: shards[file] for tensor, file in _weight_map(index).items()}
    here = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in here if name.endswith(PICKLED)]
    if pickled:
        raise ValueError(
            f"{folder} holds pickled weights ({', '.join(pickled)}), which can run any code and "
            "are not read. Save them again with save_pretrained(folder, safe_serialization=True)."
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}; it has {here}.")


def shard_names(index: Path) -> set[str]:
    """The files that an index names, each in its folder."""
    return set(_weight_map(index).values())


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index, index.parent).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{index} has no weight_map.")
    for name in found.values():
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
            raise ValueError(f"{index} names the file {name!r}; a file of its folder is needed.")
    return found


def _shard(folder: Path, name: str) -> Path:
    """A file that an index names, which must not be a link out of the folder.

    The cache of the hub keeps the files of `snapshots/COMMIT` in `blobs` beside `snapshots`.
    """
    if not (folder / name).is_file():
        have = sorted(path.name for path in folder.glob("*.safetensors"))
        raise FileNotFoundError(
            f"{folder} has no {name}, which {INDEX} names: a shard is missing. It has {have}; copy "
            "the folder again."
        )
    home, found = folder.resolve(), (folder / name).resolve()
    cached = home.parent.name == "snapshots" and found.parent == home.parent.parent / "blobs"
    if found.parent != home and not cached:
        raise ValueError(
            f"{folder / name} is a link to {found}, outside of the folder; copy the file into it."
        )
    return folder / name


def open_tensors(file: Path):
    safetensors = needs("safetensors")
    needs("ml_dtypes")  # numpy reads bfloat16 only once it is there
    try:
        return safetensors.safe_open(str(file), framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is not a safetensors file, or is cut off ({error}); copy it again."
        ) from error


def save_tensors(tensors: Mapping[str, np.ndarray], file: Path) -> None:
    """Write a file of safetensors.

    Raises:
        OSError: it cannot be written; the package has an error of its own for a full disk.
    """
    safetensors = needs("safetensors")
    try:
        needs("safetensors.numpy").save_file(dict(tensors), file, metadata={"format": "pt"})
        share(file)
    except safetensors.SafetensorError as error:
        raise OSError(f"{file}: {error}") from error


def cast(name: str, array: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """A tensor in another floating type; in its own, or the widest that JAX is set to, when absent.

    Raises:
        ValueError: a finite entry would become infinite, or `dtype` is no floating type.
    """
    kind = jax.dtypes.canonicalize_dtype(array.dtype if dtype is None else dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"parameters were asked for as {kind}; a floating type is needed.")
    if kind == array.dtype:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(kind)
    lost = np.isfinite(array) & ~np.isfinite(found)
    if lost.any():
        raise ValueError(
            f"{name} holds {float(array[lost][0]):.4g}, and the largest number of {kind} is "
            f"{float(jnp.finfo(kind).max):.4g}. Ask for a dtype of a wider range, such as float32 "
            "or bfloat16."
        )
    return found


def read_json(file: Path, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    if not file.is_file():
        here = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} has no {file.name}; it has {here}.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply to be read.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; an object is needed.")
    return found


def few(found: list[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
