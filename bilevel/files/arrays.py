"""Named arrays in npz and safetensors files; a file that holds Python objects is refused."""

import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bilevel.files.needs import needs

MOST_BYTES = 1 << 34  # of all arrays together
FORMATS = (".npz", ".safetensors")


def read_arrays(file: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.

    Args:
        file: `.npz` or `.safetensors`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence: another format, damaged, no array, pickled objects, too large.
        ImportError: the file is safetensors, and the package is not installed.
    """
    file = Path(file)
    check_format(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    found = _safetensors(file) if file.suffix == ".safetensors" else _npz(file)
    if not found:
        raise ValueError(f"{file} holds no array.")
    return found


def write_arrays(file: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays in the format of the file's name, `.npz` or `.safetensors`."""
    file = check_format(Path(file))
    if file.suffix == ".safetensors":
        contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        needs("safetensors.numpy", what="safetensors files").save_file(contiguous, file)
        share(file)
    else:
        with file.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **dict(arrays))


def share(file: Path) -> None:
    """Give a file the permissions of any new file; safetensors lets nobody but its owner read."""
    probe = file.with_name(f".{file.name}.new")
    probe.touch()
    file.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.unlink()


def check_format(file: str | Path) -> Path:
    """The path, if its name is that of a format.

    Raises:
        ValueError: it is not.
    """
    file = Path(file)
    if file.suffix not in FORMATS:
        raise ValueError(
            f"{file} is neither .npz nor .safetensors; save the arrays with "
            "numpy.savez(file, name=array) or with safetensors."
        )
    return file


def _npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"{file} holds more than {MOST_BYTES >> 30} GiB; split it.")
        with np.load(file, allow_pickle=False) as opened:
            return {name: _array(file, opened, name) for name in opened.files}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{file} is not an npz file, or is cut off ({error}).") from error


def _array(file: Path, opened: Mapping, name: str) -> np.ndarray:
    try:
        array = opened[name]
    except ValueError as error:  # numpy's word for a pickled member, or a damaged header
        raise ValueError(
            f"{file}, array {name!r}, holds Python objects or is damaged; an array of numbers is "
            "needed."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ValueError(f"{file}, {name!r}, is no array of real numbers.")
    return array


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    safetensors = needs("safetensors", what="safetensors files")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} holds more than {MOST_BYTES >> 30} GiB; split it.")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(
            f"{file} is not a safetensors file, is cut off, or has an unknown type ({error})."
        ) from error
