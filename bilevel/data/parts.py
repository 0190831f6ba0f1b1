"""Fixed mini-batches, drawn one by one, of equal sizes or nearly so."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from bilevel import sharding
from bilevel.data.feeds import AllRows, Contiguous, Feed, Feeder, Places, all_rows
from bilevel.problem import Problem, Samples
from bilevel.typing import RandomKey


class Parts(Feeder):
    """One of the n / size slices of the rows as they are, drawn uniformly; then those after it."""

    arrays: PyTree
    key: RandomKey
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    order: Int[Array, "devices rows"] | None = None  # where rows were dealt to devices
    places: Places = eqx.field(static=True, default=None)

    def draw(self, k, n):
        return Contiguous(self.arrays, self._start(k), self.n, self.size, self.places)

    def rows(self, k, n):
        if self.places is None:
            return _Numbers(self._start(k), self.n, self.size)
        places = (sharding.leading(self.places[0]),)
        return Contiguous(self.order, self._start(k), self.n, self.size, places)

    @property
    def parts(self):
        return self.n // self.size

    @property
    def n_batches(self):
        return self.parts

    @property
    def whole(self):
        return all_rows(self.arrays, self.n, self.places)

    def _start(self, k):
        return self.size * _drawn(self.key, k, self.parts)


class _Numbers(Samples):
    """Row numbers of contiguous rows."""

    start: Int[Array, ""]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __getitem__(self, i):
        start = jax.lax.rem(self.start + jnp.asarray(i * self.size, jnp.int32), jnp.int32(self.n))
        return start + jnp.arange(self.size, dtype=jnp.int32)


def _drawn(key: RandomKey, k: Int[Array, ""], parts: int) -> Int[Array, ""]:
    return jax.random.randint(jax.random.fold_in(key, k), (), 0, parts, jnp.int32)


# --- rows that do not divide into equal parts -------------------------------------------------


class UnevenBatch(eqx.Module):
    """A part of uneven data: all of `rows`, or all but the first of them.

    Its loss is weighed by its size, so that the mean over all parts is the loss of all rows.
    """

    rows: PyTree
    short: Bool[Array, ""]
    weights: tuple[float, float] = eqx.field(static=True)  # of a long part, of a short one

    def weighed(self, loss: Callable[[PyTree], Scalar]) -> Scalar:
        """The loss of the part."""

        def at(rows, weight):
            value = loss(rows)
            return jnp.asarray(weight, value.dtype) * value

        long, short = self.weights
        fewer = lambda: at(jax.tree.map(lambda leaf: leaf[1:], self.rows), short)  # noqa: E731
        return jax.lax.cond(self.short, fewer, lambda: at(self.rows, long))


class UnevenParts(Feeder):
    """Parts whose sizes differ by one, at most `size`; drawn as `Parts` are.

    Row numbers are those of parts that are all as long as the longest.
    """

    arrays: PyTree
    key: RandomKey
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    places: Places = eqx.field(static=True, default=None)

    def draw(self, k, n):
        return _UnevenSlices(self.arrays, _drawn(self.key, k, self.parts), self.n, self.parts)

    def rows(self, k, n):
        longest = -(-self.n // self.parts)
        start = longest * _drawn(self.key, k, self.parts)
        return _Numbers(start, longest * self.parts, longest)

    @property
    def parts(self):
        return -(-self.n // self.size)

    @property
    def n_batches(self):
        return self.parts

    @property
    def whole(self):
        return AllRows(self.arrays, self.n)


class _UnevenSlices(Samples):
    arrays: PyTree
    first: Int[Array, ""]
    n: int = eqx.field(static=True)
    parts: int = eqx.field(static=True)

    def __getitem__(self, i):
        size, longer = divmod(self.n, self.parts)  # of a short part; how many are one row longer
        part = jax.lax.rem(self.first + jnp.asarray(i, jnp.int32), jnp.int32(self.parts))
        short = part >= longer  # then with the row before it
        start = part * size + jnp.minimum(part, longer) - short.astype(jnp.int32)
        rows = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size + 1), self.arrays
        )
        weights = self.parts * (size + 1) / self.n, self.parts * size / self.n
        return UnevenBatch(rows, short, weights)


class OnParts(eqx.Module):
    """A loss that takes an `UnevenBatch`, too."""

    loss: Callable

    def __call__(self, x: Any, y: Any, batch: Any) -> Scalar:
        if isinstance(batch, UnevenBatch):
            return batch.weighed(lambda rows: self.loss(x, y, rows))
        return self.loss(x, y, batch)


def on_parts(problem: Problem, feed: Feed) -> Problem:
    """The problem with losses that take the batches of a feed, where these are uneven.

    Raises:
        ValueError: the problem declares a hypergradient or a lower step, which cannot be weighed.
    """
    if not any(isinstance(level, UnevenParts) for level in (feed.upper, feed.lower)):
        return problem
    if problem.hypergradient is not None or problem.lower_step is not None:
        raise ValueError(
            "Data(order='partition') has mini-batches of two sizes, and what the problem declares "
            "(hypergradient or lower_step) takes one. Give a batch_size that divides the rows."
        )
    return problem.replace(upper=OnParts(problem.upper), lower=OnParts(problem.lower))
