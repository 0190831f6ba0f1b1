"""Estimators of the directions of m blocks, I of which are drawn in a step.

The estimand `D(w; Drawn(sample, blocks))` has a leading axis of I, one row for each drawn block.
The direction has one row for each of the m blocks.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from bilevel import trees
from bilevel.estimators.base import AbstractEstimator, zeros_of
from bilevel.fields import NONNEGATIVE, count, nonnegative, optional
from bilevel.schedules import AbstractSchedule, Count, as_schedule, first_one


class Drawn(NamedTuple):
    """A sample and the indices of its blocks, all different."""

    sample: Any
    blocks: Int[Array, " drawn"]


class Rows(NamedTuple):
    """The directions of all blocks, the point they belong to, and which blocks have one."""

    direction: PyTree  # leading axis: block
    point: Any
    seen: Bool[Array, " blocks"]


class AbstractBlockEstimator(AbstractEstimator):
    """An estimator defined by `combine`, which maps two evaluations on one sample to a direction.

    A method that shares evaluations between estimators calls `combine` directly.
    """

    blocks: eqx.AbstractVar[int]

    @abc.abstractmethod
    def combine(
        self,
        last: PyTree,
        new: PyTree,
        old: PyTree,
        drawn: Int[Array, " drawn"],
        k: Count,
        seen: Bool[Array, " blocks"] | None = None,
    ) -> PyTree:
        """The direction of all blocks.

        Args:
            last: the previous direction, m rows.
            new, old: I rows each, evaluated on one sample at the current and the previous point.
            drawn: the indices of these I blocks.
            k: the step number.
            seen: which of the m blocks were drawn in an earlier step; all if `None`.
        """

    def init(self, estimand, point, sample):
        row = zeros_of(estimand, point, sample)
        direction = jax.tree.map(
            lambda leaf: jnp.zeros((self.blocks, *leaf.shape[1:]), leaf.dtype), row
        )
        return Rows(direction, trees.copy(point), jnp.zeros(self.blocks, bool))

    def step(self, estimand, point, sample, memory, k):
        new, old = estimand(point, sample), estimand(memory.point, sample)
        last, _, seen = memory
        direction = self.combine(last, new, old, sample.blocks, k, seen)
        return direction, Rows(direction, point, seen.at[sample.blocks].set(True))


class MSVR(AbstractBlockEstimator):
    """`d_b ← (1 − a_k) d_b + a_k D_new,b + γ (D_new,b − D_old,b)` for the drawn blocks b.

    A block drawn for the first time starts at its evaluation. A block that is not drawn keeps its
    direction; the correction γ > 1 compensates for this when it is drawn again. With all blocks
    drawn and `a + γ = 1` this is STORM.

    Attributes:
        blocks: m.
        weight: a.
        correction: γ; if `None`, the value of the theory, `(m − I)/(I (1 − a)) + 1 − a`, which
            needs a < 1 unless all blocks are drawn.

    Reference: Jiang, Li, Wang, Zhang, Yang. "Multi-block-single-probe variance reduced estimator
    for coupled compositional optimization". NeurIPS 2022, arXiv:2207.08540.
    """

    blocks: int = count()
    weight: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)
    correction: AbstractSchedule | None = nonnegative(None, converter=optional(as_schedule))

    def combine(self, last, new, old, drawn, k, seen=None):
        a, gamma = self.weight(k), self._correction(drawn.size, k)

        def leaf(last, new, old):
            moved = trees.axpy(gamma, new - old, trees.lerp(last[drawn], new, a))
            if seen is not None:
                known = seen[drawn].reshape(-1, *(1,) * (new.ndim - 1))
                moved = jnp.where(known, moved, new)
            return last.at[drawn].set(moved)

        return jax.tree.map(leaf, last, new, old)

    def _correction(self, drawn: int, k: Count) -> Array:
        if self.correction is not None:
            return self.correction(k)
        keep = 1 - self.weight(k)
        missing = self.blocks - drawn
        return keep if missing == 0 else missing / (drawn * keep) + keep


class SparseSTORM(AbstractBlockEstimator):
    """`d ← (1 − η_k) (d − S D_old) + S D_new`, with η_0 = 1 and S D the drawn rows times m/I.

    S D is zero in the rows of blocks that are not drawn, and its mean over uniform draws is D. So
    this is STORM on an unbiased sparse estimand. With all blocks drawn it is plain STORM.

    Attributes:
        blocks: m.
        weight: η.

    Reference: Guo, Yang and others, "Randomized stochastic variance-reduced methods for
    multi-task stochastic bilevel optimization", arXiv:2105.02266.
    """

    blocks: int = count()
    weight: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)

    def combine(self, last, new, old, drawn, k, seen=None):
        keep, share = 1 - first_one(self.weight, k), self.blocks / drawn.size

        def leaf(last, new, old):
            rows = trees.scale(share, trees.axpy(-keep, old, new))
            return trees.scale(keep, last).at[drawn].add(rows)

        return jax.tree.map(leaf, last, new, old)
