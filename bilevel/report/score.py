"""Means with their standard errors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Score(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.2g}"


def mean_and_error(values: Float[np.ndarray, " n"]) -> Score:
    """The mean of at least two independent values, and its standard error."""
    values = np.asarray(values)
    return Score(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
