"""Arrays padded to powers of two, so that tables of similar sizes share a compiled program."""

import numpy as np
from jaxtyping import Shaped

ROWS, COLUMNS = 256, 16  # the smallest that a table is padded to


def power_of_two(size: int, least: int) -> int:
    """The smallest power of two that is at least both."""
    return max(least, 1 << (size - 1).bit_length())


def pad(array: Shaped[np.ndarray, "..."], *shape: int) -> Shaped[np.ndarray, "..."]:
    """The array with zeros behind each axis, up to the shape."""
    widths = [(0, size - length) for size, length in zip(shape, array.shape, strict=True)]
    return np.pad(array, widths)
