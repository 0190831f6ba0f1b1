"""A problem whose answer is known without solving it, and the verdict on a point."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.problem import Batch

FEASIBLE = 1e-4  # largest violation of a constraint, times 1 + max |x|, |y|
GAP = 1e-4  # of the follower, times the fall of g from its start; 1e-2 with noise
NEAR = 1e-3  # f above the best, times its fall from the start to the best; 1e-2 with noise


class Kind(enum.Enum):
    """The verdict on a point."""

    SOLVED = "solved"
    WORSE = "worse"  # the upper loss, with the follower's answer, is too large
    NOT_OPTIMAL = "not the follower's"  # x is good, and y is no answer to it
    INFEASIBLE = "infeasible"


class Case(NamedTuple):
    """A problem, its best value, and the follower's answer in NumPy."""

    family: str
    n: int  # the size: entries of y, about
    problem: bl.Problem
    x0: Any
    y0: Any
    best: float  # least upper loss, y answering: by construction, or by an independent solver
    answer: Callable[[np.ndarray], np.ndarray]  # x -> the leader's favourite among y*(x)
    data: bl.Data | None = None
    noisy: bool = False  # the data come in batches

    @property
    def whole(self) -> Batch:
        return Batch() if self.data is None or self.data.full is None else self.data.full

    def value(self, x: Any) -> float:
        """The upper loss at x, with the follower's answer."""
        return float(
            self.problem.upper(x, jnp.asarray(self.answer(np.asarray(x))), self.whole.upper)
        )

    def judge(self, x: Any, y: Any) -> tuple[Kind, float]:
        """The verdict, and `(f(x, y*(x)) − best) / (f(x0, y*(x0)) − best)`."""
        answer = jnp.asarray(self.answer(np.asarray(x)))
        outside = _violation(self.problem, x, y, answer)
        fall = self.value(self.x0) - self.best
        above = (self.value(x) - self.best) / fall
        if not outside <= FEASIBLE * (1 + max(_largest(x), _largest(y))):
            return Kind.INFEASIBLE, above
        if not above <= (10 * NEAR if self.noisy else NEAR):
            return Kind.WORSE, above
        lower = self.problem.lower
        gap, scale = (
            float(lower(x, point, self.whole.lower) - lower(x, answer, self.whole.lower))
            for point in (jnp.asarray(y), jnp.asarray(self.y0))
        )
        room = (100 * GAP if self.noisy else GAP) * max(abs(scale), 1e-3)
        return Kind.SOLVED if gap <= room else Kind.NOT_OPTIMAL, above


def _violation(problem: bl.Problem, x, y, answer) -> float:
    """Of y's constraints at y; of x's at x, where they tie x to y*(x) at the answer."""
    above = problem.upper_set
    lower = problem.lower_set.violation(y, x)
    upper = above.violation(answer, x) if above.moves else above.violation(x)
    return float(max(lower, upper))


def _largest(tree: Any) -> float:
    return float(np.abs(np.asarray(tree)).max())
