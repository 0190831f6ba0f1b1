"""Estimators that store the last evaluation of every sample of a finite sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from bilevel import trees
from bilevel.estimators.base import AbstractEstimator, zeros_of
from bilevel.fields import count


class Slot(NamedTuple):
    """A sample and the index of its slot in the table."""

    sample: Any
    slot: Int[Array, ""]


class Table(NamedTuple):
    """What SAGA remembers: the last direction of each sample, and their mean."""

    slots: PyTree  # leading axis: slot
    last: Slot  # the row not yet written into its slot
    mean: PyTree  # of all slots, with `last` already in its slot


class SAGA(AbstractEstimator):
    """`d = D(w; i) − T_i + mean(T)`, then `T_i ← D(w; i)`: one slot per sample (or mini-batch).

    Unbiased at every step if the index is uniform, because `mean` is the mean of the table. This
    also holds for a table of zeros, so it may start empty. With one slot it is the full gradient.
    With more, the direction is exact once w has been constant for a pass: the noise vanishes as w
    converges. The sample is `Slot(sample, slot)`. Memory: `slots + 2` directions. The update writes
    one row in place, and the mean is kept in at least float32.

    Reference: Defazio, Bach, Lacoste-Julien. "SAGA". NeurIPS 2014, arXiv:1407.0202.
    """

    slots: int = count()

    def init(self, estimand, point, sample):
        row = zeros_of(estimand, point, sample.sample)
        slots = jax.tree.map(lambda leaf: jnp.zeros((self.slots, *leaf.shape), leaf.dtype), row)
        return Table(slots, Slot(trees.copy(row), jnp.int32(0)), trees.map(_wide, trees.copy(row)))

    def step(self, estimand, point, sample, memory, k):
        # A row is written one step late, before the next row is read. With the write after the
        # read, the compiler copied the whole table, because the old table was still in use.
        last, i = memory.last, jnp.asarray(sample.slot, jnp.int32)
        slots = jax.tree.map(
            lambda slots, row: jax.lax.dynamic_update_index_in_dim(slots, row, last.slot, 0),
            memory.slots,
            last.sample,
        )
        old = jax.tree.map(
            lambda slots: jax.lax.dynamic_index_in_dim(slots, i, keepdims=False), slots
        )
        new = estimand(point, sample.sample)
        change = trees.sub(new, old)
        mean = trees.axpy(1 / self.slots, change, memory.mean)
        return trees.axpy(1, memory.mean, change), Table(slots, Slot(new, i), mean)


def _wide(leaf: Array) -> Array:
    return leaf.astype(trees.widest(leaf))
