"""A folder that is there whole or not at all, whatever happens while it is written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_new(folder: Path) -> None:
    """Refuse a place where no new folder can be made.

    Raises:
        FileExistsError: something is there, other than an empty folder; or it is a mount point,
            onto which nothing can be renamed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; give the name of a new folder.")
    if folder.is_mount():
        raise FileExistsError(f"{folder} is a mount point; give the name of a new folder in it.")


def part_of(folder: Path) -> Path:
    """The hidden folder beside a folder that is being written or removed."""
    return folder.with_name(f".{folder.name}.bilevel-part")


def remove(folder: Path) -> None:
    """Remove a folder, which is there whole or not at all.

    What a call that was killed left beside it is removed, too; the folder need not exist.
    """
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    if folder.exists():
        folder.rename(part)
        shutil.rmtree(part)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Create a folder that is either complete or absent: `with new_folder(path) as part: ...`.

    Files are written to a hidden folder next to `folder`, which is renamed to `folder` at the end.
    If the process is killed before that, the next call removes the hidden folder.

    Raises:
        FileExistsError: see `check_new`.
        OSError: the disk is full, or cannot be written. Nothing is left of what was written.
    """
    check_new(Path(folder))
    target = Path(folder).resolve()
    part = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        yield part
        _flush(*part.rglob("*"), part)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                f"{folder} could not be written ({error.strerror or error}); nothing is left of "
                "it. Make room, or choose another folder."
            ) from error
        raise
    with contextlib.suppress(OSError):
        _flush(target.parent)


def _flush(*paths: Path) -> None:
    """Until it is on the disk; a rename could otherwise get there before the files do."""
    if os.name != "posix":
        return
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
