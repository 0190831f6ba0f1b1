"""What a compiled loop draws from."""

import abc
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree

from bilevel import sharding
from bilevel.problem import Batch, Draws, RepeatedBatch, Samples, Stacked
from bilevel.typing import RandomKey

Places = tuple[NamedSharding, ...] | None  # of the arrays whose rows are split over devices


class Feeder(eqx.Module):
    """Draws the n batches of step k; `rows` gives their row numbers where there are any.

    `parts` is how many batches there are, where they are the same at every draw: then the rows of
    part p are numbered from `p · size` on. Else it is `None`. `n_batches` is how many batches make
    up all rows, and `whole` a handle of one batch that holds these; `None` where data have no end.
    """

    @abc.abstractmethod
    def draw(self, k: Int[Array, ""], n: int) -> Samples: ...

    @property
    def parts(self) -> int | None:
        return None

    @property
    def n_batches(self) -> int | None:
        return None

    @property
    def whole(self) -> Samples | None:
        return None

    def rows(self, k: Int[Array, ""], n: int) -> Samples:
        return RepeatedBatch(None)


class Feed(eqx.Module):
    """Both levels' samples, step by step."""

    upper: Feeder
    lower: Feeder
    draws: Draws = eqx.field(static=True)

    @property
    def parts(self) -> Batch:
        """How many fixed batches each level has, `None` where they change."""
        return Batch(self.upper.parts, self.lower.parts)

    @property
    def batches(self) -> Batch:
        """How many batches make up the data of each level, `None` where they have no end."""
        return Batch(self.upper.n_batches, self.lower.n_batches)

    def batch(self, k: Int[Array, ""]) -> Batch:
        """The samples of step k: a batch where one is drawn, a handle where several are."""
        upper, lower = self.draws
        index = Batch(
            _single(self.upper.rows(k, upper), upper), _single(self.lower.rows(k, lower), lower)
        )
        whole = Batch(self.upper.whole, self.lower.whole)
        return Batch(
            _single(self.upper.draw(k, upper), upper),
            _single(self.lower.draw(k, lower), lower),
            index,
            None if whole.upper is None or whole.lower is None else whole,
        )


def _single(samples: Samples, n: int) -> Any:
    return samples[0] if n == 1 else samples


class Repeat(Feeder):
    arrays: PyTree

    @property
    def parts(self):
        return 1

    @property
    def n_batches(self):
        return 1

    @property
    def whole(self):
        return RepeatedBatch(self.arrays)

    def draw(self, k, n):
        return RepeatedBatch(self.arrays)


class AllRows(Samples):
    """One batch: the first n rows."""

    arrays: PyTree
    n: int = eqx.field(static=True)

    def __getitem__(self, i):
        return jax.tree.map(lambda leaf: leaf[: self.n], self.arrays)


class DealtRows(Samples):
    """One batch: n rows that were dealt to devices, in another order, each where it is."""

    arrays: PyTree
    n: int = eqx.field(static=True)
    places: Places = eqx.field(static=True)

    def __getitem__(self, i):
        share = self.n // sharding.row_parts(self.places)
        batch = jax.tree.map(
            lambda leaf: leaf[:, :share].reshape(self.n, *leaf.shape[2:]), self.arrays
        )
        return sharding.constrain(batch, self.places)


def all_rows(arrays: PyTree, n: int, places: Places) -> Samples:
    """All rows at once, from where they were dealt to if they were."""
    return AllRows(arrays, n) if places is None else DealtRows(arrays, n, places)


class Slices(Feeder):
    """Contiguous slices of shuffled rows, the first `size − 1` of them repeated at the end."""

    arrays: PyTree
    order: Int[Array, " rows"]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    places: Places = eqx.field(static=True, default=None)  # where rows were dealt to devices

    def draw(self, k, n):
        return Contiguous(self.arrays, self._start(k, n), self.n, self.size, self.places)

    def rows(self, k, n):
        places = self.places and (sharding.leading(self.places[0]),)
        return Contiguous(self.order, self._start(k, n), self.n, self.size, places)

    @property
    def parts(self):
        return self.n if self.size == 1 else 1 if self.size == self.n else None

    @property
    def n_batches(self):
        return -(-self.n // self.size)

    @property
    def whole(self):
        return all_rows(self.arrays, self.n, self.places)

    def stride(self, draws: int) -> int:
        """How many rows lie between the starts of two steps."""
        return self.size if draws == 1 else _spread(self.n)

    def _start(self, k, draws: int):
        stride = self.stride(draws)
        k = jax.lax.rem(k, jnp.int32(self.n))
        if self.n * stride < 2**31:
            return jax.lax.rem(k * stride, jnp.int32(self.n))
        return _mulmod(k.astype(jnp.uint32), stride, self.n).astype(jnp.int32)


def _spread(n: int) -> int:
    """A stride that takes every draw of a step through all n starts, evenly.

    With the natural stride each draw would see the same few slices forever if the stride and n
    share a divisor. Near the golden section of n, the stride whose ratio to n is worst approximated
    by fractions spreads any number of starts in a row best.
    """
    golden = round(n * (math.sqrt(5) - 1) / 2)
    near = range(max(1, golden - 16), golden + 17)
    return min((s for s in near if math.gcd(s, n) == 1), key=lambda s: _largest_quotient(n, s))


def _largest_quotient(a: int, b: int) -> int:
    """The largest partial quotient of the continued fraction of a/b."""
    largest = 0
    while b:
        largest, a, b = max(largest, a // b), b, a % b
    return largest


def _mulmod(a: Array, b: int, n: int) -> Array:
    """`a · b mod n` by doubling, for a < n < 2^31."""
    total = jnp.zeros_like(a)
    while b:
        if b & 1:
            total = jax.lax.rem(total + a, jnp.uint32(n))
        a, b = jax.lax.rem(a + a, jnp.uint32(n)), b >> 1
    return total


class Contiguous(Samples):
    arrays: PyTree
    start: Int[Array, ""]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    places: Places = eqx.field(static=True, default=None)

    def __getitem__(self, i):
        start = jax.lax.rem(self.start + jnp.asarray(i * self.size, jnp.int32), jnp.int32(self.n))
        if self.places is None:
            return jax.tree.map(lambda leaf: _cut(leaf, start, self.size), self.arrays)
        parts = sharding.row_parts(self.places)
        share = self.size // parts
        # Device d holds rows d, d + parts, ...; its first at or after the start:
        starts = (start + (parts - 1) - jnp.arange(parts, dtype=jnp.int32)) // parts
        cut = jax.vmap(functools.partial(_cut, size=share))
        batch = jax.tree.map(
            lambda leaf: cut(leaf, starts).reshape(self.size, *leaf.shape[2:]), self.arrays
        )
        return sharding.constrain(batch, self.places)


def _cut(leaf: Array, start: Int[Array, ""], size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(leaf, start, size)


class Random(Feeder):
    """Rows drawn independently."""

    arrays: PyTree
    key: RandomKey
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    places: Places = eqx.field(static=True, default=None)

    def draw(self, k, n):
        return _Gathered(self.arrays, self._index(k, n), self.places)

    def rows(self, k, n):
        return Stacked(self._index(k, n))

    @property
    def parts(self):
        return self.n if self.size == 1 else None

    @property
    def n_batches(self):
        return -(-self.n // self.size)

    @property
    def whole(self):
        return AllRows(self.arrays, self.n)

    def _index(self, k, draws: int):
        key = jax.random.fold_in(self.key, k)
        return jax.random.randint(key, (draws, self.size), 0, self.n)


class _Gathered(Samples):
    arrays: PyTree
    index: Int[Array, "draws size"]
    places: Places = eqx.field(static=True, default=None)

    def __getitem__(self, i):
        batch = jax.tree.map(lambda leaf: leaf[self.index[i]], self.arrays)
        return sharding.constrain(batch, self.places)


class Sampled(Feeder):
    """Draws each batch inside the compiled loop, with a random key of its own."""

    sample: Partial
    key: RandomKey

    def draw(self, k, n):
        return _Made(self.sample, jax.random.fold_in(self.key, k))


class _Made(Samples):
    sample: Partial
    key: RandomKey

    def __getitem__(self, i):
        return self.sample(jax.random.fold_in(self.key, i))


class Pulled(Feeder):
    """Batches stacked on the host: leading axes step (from `first` on) and draw."""

    batches: PyTree
    first: Int[Array, ""]

    def draw(self, k, n):
        return Stacked(jax.tree.map(lambda leaf: leaf[k - self.first], self.batches))
