"""Means with their standard errors."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Score(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        """The error with two digits, and the mean to the same place: `3280 ± 360`."""
        if not (math.isfinite(self.mean) and 0 < self.error < math.inf):
            return f"{self.mean:.4g} ± {self.error:.2g}"
        place = 1 - math.floor(math.log10(self.error))
        mean, error = round(self.mean, place), round(self.error, place)
        return f"{mean:.{max(place, 0)}f} ± {error:.{max(place, 0)}f}"


def mean_and_error(values: Float[np.ndarray, " n"]) -> Score:
    """The mean of at least two independent values, and its standard error."""
    values = np.asarray(values)
    return Score(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def verdict(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " n"], name: str) -> str:
    """How losses `ours` compare with `theirs`, of the same rows under a model called `name`."""
    apart = mean_and_error(np.asarray(ours) - np.asarray(theirs))
    told = f"{abs(apart.mean):.2g} (standard error {apart.error:.2g}, row by row)"
    if abs(apart.mean) <= 2 * apart.error:
        return f"No difference from {name} beyond chance: {told}."
    return f"{'Better' if apart.mean < 0 else 'Worse'} than {name} by {told}."
