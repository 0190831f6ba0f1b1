"""Omniglot: handwritten characters of many alphabets, 20 drawings of each."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float

from bilevel.files import read_zipped_pictures


class Characters(NamedTuple):
    """Characters and where they are from."""

    pictures: Float[np.ndarray, "characters drawings size size"]  # 1 is ink, 0 is paper
    alphabets: tuple[str, ...]  # of each character

    def of(self, alphabets: Iterable[str]) -> Self:
        """The characters of some alphabets.

        Raises:
            ValueError: there is no such alphabet.
        """
        alphabets = tuple(alphabets)
        for name in alphabets:
            if name not in self.alphabets:
                told = ", ".join(sorted(set(self.alphabets)))
                raise ValueError(f"there is no alphabet {name!r}; those read are {told}.")
        chosen = [name in alphabets for name in self.alphabets]
        names = tuple(name for name in self.alphabets if name in alphabets)
        return type(self)(self.pictures[np.array(chosen)], names)


def omniglot(files: Iterable[str | Path], size: int = 15) -> Characters:
    """Read zip archives of Lake's Omniglot, `*/ALPHABET/characterNN/*.png`, 105 x 105 pixels.

    An alphabet that is in several archives is read from the first one.

    Args:
        size: of the pictures, a divisor of 105; they are means over squares of pixels.

    Raises:
        FileNotFoundError, ImportError: no such file; Pillow is not installed.
        ValueError: in one sentence: no archive, another folder structure, another number of
            pixels, or characters with different numbers of drawings.
    """
    if size < 1 or 105 % size:
        raise ValueError(f"size is {size}; a divisor of 105 is needed, such as 15 or 21.")
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    read: set[str] = set()
    for file in map(Path, files):
        new: set[str] = set()
        for place, pixels in read_zipped_pictures(file):
            parts = place.relative_to(file).parts
            if len(parts) < 3 or pixels.shape[:2] != (105, 105):
                raise ValueError(
                    f"{place} has {pixels.shape[0]} x {pixels.shape[1]} pixels; "
                    "ALPHABET/CHARACTER/*.png of 105 x 105 are needed."
                )
            alphabet, character = parts[-3], parts[-2]
            if alphabet in read:
                continue
            new.add(alphabet)
            squares = 1 - pixels[..., 0].reshape(size, 105 // size, size, 105 // size)
            found.setdefault((alphabet, character), []).append(squares.mean((1, 3)))
        read |= new
    if not found:
        raise ValueError("no archive was given; the zip files of Omniglot are needed.")
    counts = {len(drawings) for drawings in found.values()}
    if len(counts) > 1:
        raise ValueError(
            f"characters have from {min(counts)} to {max(counts)} drawings; the same number of "
            "each is needed."
        )
    return Characters(np.array(list(found.values())), tuple(alphabet for alphabet, _ in found))
