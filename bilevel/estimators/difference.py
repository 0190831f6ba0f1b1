"""Estimators that correct the last direction by a difference of two points on one sample."""

from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bilevel import trees
from bilevel.estimators.base import AbstractEstimator, Estimand, zeros_of
from bilevel.fields import count, nonnegative
from bilevel.schedules import AbstractSchedule, as_schedules, first_one, is_schedule


class Path(NamedTuple):
    """The last direction and the point where it was evaluated."""

    direction: PyTree
    point: Any


def follow(estimand: Estimand, point: Any, sample: Any, last: Path) -> Path:
    """`d ← d + D(w; s) − D(w_old; s)`, the direction after a move from w_old to w.

    `estimand` is D, `point` is w, `sample` is s, and `last` holds d and w_old.
    """
    new, old = estimand(point, sample), estimand(last.point, sample)
    return Path(trees.add(last.direction, trees.sub(new, old)), point)


class STORM(AbstractEstimator):
    """`d ← D(w; s) + (1 − η_k)(d − D(w_old; s))`, with η_0 = 1.

    Exact at every step of a deterministic problem, for any η. Both evaluations use the same
    sample. The sample losses need Lipschitz gradients.

    Attributes:
        weight: η, a single weight or a tree of weights that is a prefix of the direction.

    Reference: Cutkosky, Orabona. "Momentum-based variance reduction in non-convex SGD".
    NeurIPS 2019, arXiv:1905.10018.
    """

    weight: PyTree[AbstractSchedule] = nonnegative(converter=as_schedules, default=0.1)

    def init(self, estimand, point, sample):
        return Path(zeros_of(estimand, point, sample), trees.copy(point))

    def step(self, estimand, point, sample, memory, k):
        new, old = estimand(point, sample), estimand(memory.point, sample)

        def part(weight, new, last, old):
            return trees.axpy(1 - first_one(weight, k), trees.sub(last, old), new)

        direction = jax.tree.map(part, self.weight, new, memory.direction, old, is_leaf=is_schedule)
        return direction, Path(direction, point)


class Anchored(NamedTuple):
    """The two samples of SPIDER: a small one for differences, a large one for restarts."""

    small: Any
    large: Any


class SPIDER(AbstractEstimator):
    """`d = D(w; large)` every `period` steps, else `d ← d + D(w; small) − D(w_old; small)`.

    The sample is `Anchored(small, large)`.

    Reference: Fang, Li, Lin, Zhang. "SPIDER". NeurIPS 2018, arXiv:1807.01695.
    """

    period: int = count(16)

    def init(self, estimand, point, sample):
        return Path(zeros_of(estimand, point, sample.small), trees.copy(point))

    def step(self, estimand, point, sample, memory, k):
        def restart():
            return estimand(point, sample.large)

        def correct():
            return follow(estimand, point, sample.small, memory).direction

        direction = jax.lax.cond(k % self.period == 0, restart, correct)
        return direction, Path(direction, point)
