"""Where samples come from: arrays, samplers, iterators, and how a compiled loop draws from them.

A `Data` says what there is. `Data.feed` prepares it for a method: arrays are put in a random
order once, and the resulting `Feed`, a pytree, is an argument of the compiled loop. Which batch
step k sees depends on the key and on k alone, so a resumed run sees the same samples.
"""

import abc
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree

from bilevel.problem import Batch, Draws, Same, Samples, Stacked
from bilevel.typing import RandomKey

ORDERS = ("epochs", "replacement")


class Data:
    """The samples of both levels.

    Args:
        upper, lower: each one of
            arrays: a pytree whose leaves share a leading axis, one row a sample;
            a sampler: `key -> batch`, a pure function, called inside the compiled loop;
            an iterable of batches (a loader, a generator; a list or tuple is read as arrays):
            pulled, stacked and read ahead on the host. A loader that ends is started again; a
            generator that ends stops the run.
            `None`: the loss gets `None`.
        batch_size: rows of a batch drawn from arrays; all rows when absent. A `Batch` of two
            numbers gives each level its own.
        order: "epochs" puts the rows in a random order once and then takes contiguous slices,
            wrapping around (each row equally often; the fastest); a method with several draws a
            step gets them side by side, from starts that visit every row. "replacement" draws
            rows independently.

    Raises:
        ValueError: empty data, leaves of unequal length, NaN, a batch larger than the data, an
            unknown order.
    """

    def __init__(
        self,
        upper: Any = None,
        lower: Any = None,
        batch_size: int | Batch | None = None,
        order: str = "epochs",
    ):
        if order not in ORDERS:
            raise ValueError(f"Data.order is {order!r}; it is one of {', '.join(ORDERS)}.")
        sizes = batch_size if isinstance(batch_size, Batch) else Batch(batch_size, batch_size)
        self.upper = _as_source("upper", upper, sizes.upper, order)
        self.lower = _as_source("lower", lower, sizes.lower, order)

    def feed(self, key: RandomKey, draws: Draws) -> "Feed":
        """What a compiled loop draws from; the same for the same key."""
        upper, lower = level_keys(key)
        return Feed(self.upper.feed(upper), self.lower.feed(lower), draws)

    @property
    def full(self) -> Batch | None:
        """Both levels' whole data, or `None` if a level has no such thing."""
        if isinstance(self.upper, Whole | Rows) and isinstance(self.lower, Whole | Rows):
            return Batch(self.upper.arrays, self.lower.arrays)
        return None

    @property
    def streams(self) -> bool:
        """Whether a level comes from an iterator, which only the host can pull."""
        return isinstance(self.upper, Stream) or isinstance(self.lower, Stream)

    def __repr__(self) -> str:
        return f"Data(upper={self.upper!r}, lower={self.lower!r})"


def level_keys(key: RandomKey) -> tuple[RandomKey, RandomKey]:
    """A key for each level's samples, apart from what a method makes of the same key."""
    upper, lower = jax.random.split(jax.random.fold_in(key, 0xDA7A))
    return upper, lower


# --- sources: what a user gave -------------------------------------------------------------


class Source(abc.ABC):
    """One level's samples."""

    @abc.abstractmethod
    def feed(self, key: RandomKey) -> "Feeder": ...


class Whole(Source):
    """The same batch every time: all rows, or nothing."""

    def __init__(self, arrays: PyTree):
        self.arrays = arrays

    def feed(self, key):
        return Repeat(self.arrays)

    def __repr__(self) -> str:
        return "None" if self.arrays is None else f"all {_length(self.arrays)} rows"


class Rows(Source):
    """Mini-batches of rows."""

    def __init__(self, arrays: PyTree, batch_size: int, order: str):
        self.arrays, self.batch_size, self.order = arrays, batch_size, order

    def feed(self, key):
        n = _length(self.arrays)
        if self.order == "replacement":
            return Random(self.arrays, key, n, self.batch_size)
        shuffled, rows = _shuffled(self.arrays, key, self.batch_size)
        return Slices(shuffled, rows, n, self.batch_size)

    def __repr__(self) -> str:
        return f"{_length(self.arrays)} rows in batches of {self.batch_size}, {self.order}"


@functools.partial(jax.jit, static_argnums=2)
def _shuffled(arrays: PyTree, key: RandomKey, batch_size: int) -> tuple[PyTree, Array]:
    """Rows in a random order, the first `batch_size − 1` of them again at the end; the order."""
    order = jax.random.permutation(key, _length(arrays))
    order = jnp.concatenate([order, order[: batch_size - 1]])
    return jax.tree.map(lambda leaf: leaf[order], arrays), order


class Sampler(Source):
    """A pure function `key -> batch`."""

    def __init__(self, sample: Callable):
        self.sample = sample

    def feed(self, key):
        return Sampled(Partial(self.sample), key)

    def __repr__(self) -> str:
        return f"sampler {getattr(self.sample, '__name__', type(self.sample).__name__)}"


class Stream(Source):
    """Batches from the host."""

    def __init__(self, batches: Iterable):
        self.batches = batches

    def feed(self, key):
        raise TypeError(
            "bl.run is pure and cannot pull batches from an iterator: use bl.solve, or give "
            "Data arrays or a sampler key -> batch."
        )

    def __iter__(self) -> Iterator:
        """Batches without end, unless the iterable is used up after one pass."""
        again = not isinstance(self.batches, Iterator)
        while True:
            empty = True
            for batch in self.batches:
                empty = False
                yield batch
            if empty or not again:
                return

    def __repr__(self) -> str:
        return f"stream {type(self.batches).__name__}"


# --- feeds: what a compiled loop draws from ------------------------------------------------


class Feeder(eqx.Module):
    """Draws the n batches of step k; `rows` gives their row numbers where there are any."""

    @abc.abstractmethod
    def draw(self, k: Int[Array, ""], n: int) -> Samples: ...

    def rows(self, k: Int[Array, ""], n: int) -> Samples:
        return Same(None)


class Feed(eqx.Module):
    """Both levels' samples, step by step."""

    upper: Feeder
    lower: Feeder
    draws: Draws = eqx.field(static=True)

    def batch(self, k: Int[Array, ""]) -> Batch:
        """The samples of step k: a batch where one is drawn, a handle where several are."""
        upper, lower = self.draws
        index = Batch(
            _single(self.upper.rows(k, upper), upper), _single(self.lower.rows(k, lower), lower)
        )
        return Batch(
            _single(self.upper.draw(k, upper), upper),
            _single(self.lower.draw(k, lower), lower),
            index,
        )


def _single(samples: Samples, n: int) -> Any:
    return samples[0] if n == 1 else samples


class Repeat(Feeder):
    arrays: PyTree

    def draw(self, k, n):
        return Same(self.arrays)


class Slices(Feeder):
    """Contiguous slices of shuffled rows, the first `size − 1` of them repeated at the end."""

    arrays: PyTree
    order: Int[Array, " rows"]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def draw(self, k, n):
        return _Contiguous(self.arrays, self._start(k, n), self.n, self.size)

    def rows(self, k, n):
        return _Contiguous(self.order, self._start(k, n), self.n, self.size)

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

    The natural stride would show each draw the same few slices for ever wherever it shares a
    divisor with n. Near the golden section of n, the stride whose ratio to n is worst approximated
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


class _Contiguous(Samples):
    arrays: PyTree
    start: Int[Array, ""]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __getitem__(self, i):
        start = jax.lax.rem(self.start + jnp.asarray(i * self.size, jnp.int32), jnp.int32(self.n))
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, self.size), self.arrays
        )


class Random(Feeder):
    """Rows drawn independently."""

    arrays: PyTree
    key: RandomKey
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def draw(self, k, n):
        return _Gathered(self.arrays, self._index(k, n))

    def rows(self, k, n):
        return Stacked(self._index(k, n))

    def _index(self, k, draws: int):
        key = jax.random.fold_in(self.key, k)
        return jax.random.randint(key, (draws, self.size), 0, self.n)


class _Gathered(Samples):
    arrays: PyTree
    index: Int[Array, "draws size"]

    def __getitem__(self, i):
        return jax.tree.map(lambda leaf: leaf[self.index[i]], self.arrays)


class Sampled(Feeder):
    """Batches made inside the loop from a key each."""

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


# --- reading what a user gave --------------------------------------------------------------


def _as_source(name: str, value: Any, batch_size: int | None, order: str) -> Source:
    if isinstance(value, Source):
        return value
    if value is None:
        return Whole(None)
    if isinstance(value, str | bytes):
        raise TypeError(f"Data.{name} is text; arrays, a sampler or an iterable is needed.")
    if callable(value):
        return Sampler(value)
    if _is_stream(value):
        return Stream(value)
    arrays = jax.tree.map(functools.partial(_as_array, name), value)
    n = _checked_length(name, arrays)
    if batch_size is None:
        return Whole(arrays)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"Data.batch_size is {batch_size!r}; a whole number is needed.")
    if batch_size < 1:
        raise ValueError(f"Data.batch_size is {batch_size}; at least 1 is needed.")
    if batch_size > n:
        raise ValueError(
            f"Data.batch_size is {batch_size}, but Data.{name} holds {n} rows. "
            f"Take at most {n}, or None for all rows."
        )
    return Rows(arrays, int(batch_size), order)


def _is_stream(value: Any) -> bool:
    if isinstance(value, Iterator):
        return True
    is_leaf = jax.tree.structure(value) == jax.tree.structure(0)
    return is_leaf and isinstance(value, Iterable) and not hasattr(value, "shape")


def _as_array(name: str, leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV":  # V: bfloat16 and its like
        raise TypeError(
            f"Data.{name} holds {type(leaf).__name__} of type {array.dtype}; numbers are needed."
        )
    return jnp.asarray(array)


def _length(arrays: PyTree) -> int:
    return jax.tree.leaves(arrays)[0].shape[0]


def _checked_length(name: str, arrays: PyTree) -> int:
    named = [
        (f"Data.{name}{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ]
    if not named:
        raise ValueError(f"Data.{name} holds no arrays.")
    for label, leaf in named:
        if leaf.ndim == 0:
            raise ValueError(f"{label} is a single number; an array with a row a sample is needed.")
    lengths = {label: leaf.shape[0] for label, leaf in named}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{label} has {n} rows" for label, n in lengths.items())
        raise ValueError(f"Data.{name} has leaves of unequal length: {told}.")
    if 0 in lengths.values():
        raise ValueError(f"Data.{name} is empty: its leaves have 0 rows.")
    for label, leaf in named:
        _check_finite(label, leaf)
    return next(iter(lengths.values()))


def _check_finite(label: str, leaf: Array) -> None:
    if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return
    bad = jnp.isnan(leaf).reshape(leaf.shape[0], -1).any(axis=1)
    if bad.any():
        raise ValueError(
            f"{label} contains a NaN, first in row {int(bad.argmax())} ({int(bad.sum())} rows in "
            "all). Drop or fill those rows."
        )
