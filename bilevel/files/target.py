"""The column of a table that is to be predicted."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from bilevel.files.table import Table

MOST_CLASSES = 20  # of numbers that are read as labels; texts may be more


class Target(NamedTuple):
    """Numbers, or labels by their number."""

    values: Shaped[np.ndarray, " rows"]
    classes: tuple[str, ...] = ()  # empty where the values are numbers


def read_target(table: Table, name: str, classes: bool | None = None) -> Target:
    """A column of numbers to regress on, or of classes.

    Args:
        classes: which of the two; absent, texts and at most 20 different whole numbers are
            classes, other numbers are not.

    Raises:
        ValueError: there is no such column, a field is missing or no number, or all are the same.
    """
    if classes is None:
        classes = not table.is_numeric(name) or _few_whole_numbers(table.numbers([name]))
    if classes:
        codes, names = table.categories(name)
        if len(names) == 1:
            raise ValueError(
                f"{table.file}: every row of column {name!r} is {names[0]!r}; "
                "at least two classes are needed."
            )
        return Target(codes, names)
    values = table.numbers([name])[:, 0]
    if np.ptp(values) == 0:
        raise ValueError(
            f"{table.file}: every row of column {name!r} is {values[0]:g}; "
            "different numbers are needed."
        )
    return Target(values)


def _few_whole_numbers(values: np.ndarray) -> bool:
    different = np.unique(values)
    return len(different) <= MOST_CLASSES and bool(np.all(different == np.round(different)))
