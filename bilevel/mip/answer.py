"""What a search for the best point of a bilevel program ends with."""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FEASIBLE = 1e-6  # largest violation of a row or a bound, and gap of the follower, relative


class Ending(enum.Enum):
    """How a search ended."""

    OPTIMAL = "optimal"  # the gap is closed
    INFEASIBLE = "infeasible"  # no point is allowed, or the follower has no answer to any x
    UNBOUNDED = "unbounded"  # the relaxation falls for ever: nothing can be proved
    LIMIT = "limit"  # nodes ran out, or rounding left a gap; value and bound hold


class Answer(NamedTuple):
    """The best point that was found, and what was proved."""

    ending: Ending
    z: Float[np.ndarray, " n"] | None  # the columns; `None` where no point was found
    value: float  # of the leader's loss there; infinite where there is none
    bound: float  # no allowed point has a smaller value
    follower_value: float  # of the follower's loss at z
    follower_best: float  # its smallest value, by solving the follower anew
    nodes: int  # programs that were solved
    big_m_fails: bool | None = None  # whether the big-M that was given cuts the best point off

    @property
    def gap(self) -> float:
        """`(value − bound) / max(1, |value|)`."""
        if self.z is None:
            return float("inf")
        return max(0.0, self.value - self.bound) / max(1.0, abs(self.value))

    def __str__(self) -> str:
        if self.z is None:
            return f"{self.ending.value}: no point after {self.nodes} programs"
        return (
            f"{self.ending.value}: value {self.value:.9g}, bound {self.bound:.9g}, "
            f"{self.nodes} programs"
        )
