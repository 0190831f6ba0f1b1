"""The files of a checkpoint folder: config.json, and tensors in files of safetensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.apps.llm.needs import needs

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


def few(found: list[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
