"""What a user gave for one level."""

import abc
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from bilevel import sharding
from bilevel.data.feeds import Feeder, Random, Repeat, Sampled, Slices
from bilevel.data.parts import Parts, UnevenParts
from bilevel.typing import RandomKey


class Source(abc.ABC):
    """One level's samples."""

    content: PyTree  # the arrays it is made of

    @property
    def n_batches(self) -> int | None:
        """How many batches make up all of it; `None` where it has no end."""
        return None

    @abc.abstractmethod
    def feed(self, key: RandomKey) -> "Feeder": ...


class Whole(Source):
    """The same batch every time: all rows, or nothing."""

    def __init__(self, arrays: PyTree):
        self.arrays = self.content = arrays

    @property
    def n_batches(self):
        return 1

    def feed(self, key):
        return Repeat(self.arrays)

    def __repr__(self) -> str:
        return "None" if self.arrays is None else f"all {length(self.arrays)} rows"


class Rows(Source):
    """Mini-batches of rows."""

    def __init__(self, arrays: PyTree, batch_size: int, order: str):
        self.arrays = self.content = arrays
        self.batch_size, self.order = batch_size, order

    @property
    def n_batches(self):
        return -(-length(self.arrays) // self.batch_size)

    def feed(self, key):
        return self.feed_of(self.arrays, key)

    def feed_of(self, arrays: PyTree, key: RandomKey) -> "Feeder":
        """As a function of the arrays, for abstract evaluation."""
        n, size, places = length(arrays), self.batch_size, sharding.rows(arrays)
        key = sharding.replicate_on(key, sharding.mesh_of(arrays))
        if self.order == "replacement":
            return Random(arrays, key, n, size, places)
        if self.order == "partition":
            if n % size:
                return UnevenParts(arrays, key, n, size)
            if places is None:
                return Parts(arrays, key, n, size)
            dealt, numbers = _dealt(arrays, jnp.arange(n, dtype=jnp.int32), size, places)
            return Parts(dealt, key, n, size, numbers, places)
        if places is None:
            shuffled, numbers = _shuffled(arrays, key, size)
        else:
            shuffled, numbers = _dealt(arrays, jax.random.permutation(key, n), size, places)
        return Slices(shuffled, numbers, n, size, places)

    def __repr__(self) -> str:
        return f"{length(self.arrays)} rows in batches of {self.batch_size}, {self.order}"


@functools.partial(jax.jit, static_argnums=2)
def _shuffled(arrays: PyTree, key: RandomKey, batch_size: int) -> tuple[PyTree, Array]:
    """Rows in a random order, the first `batch_size − 1` of them again at the end; the order."""
    order = jax.random.permutation(key, length(arrays))
    order = jnp.concatenate([order, order[: batch_size - 1]])
    return jax.tree.map(lambda leaf: leaf[order], arrays), order


@functools.partial(jax.jit, static_argnums=(2, 3))
def _dealt(
    arrays: PyTree, order: Array, batch_size: int, places: tuple[NamedSharding, ...]
) -> tuple[PyTree, Array]:
    """Rows in an order, assigned to devices round-robin, and the order likewise.

    The i-th row goes to device i mod parts, on two leading axes (device, place). So any
    `batch_size` consecutive rows are spread evenly over the devices. The rows wrap around.
    """
    n, parts = length(arrays), sharding.row_parts(places)
    share = -(-(n + batch_size - 1) // parts)  # rows of a device
    piece = -(-share // (2 * parts))  # moved at a time: no device ever holds all rows
    pieces = -(-share // piece)
    order = order[jnp.arange(pieces * piece * parts) % n].reshape(pieces, piece, parts)

    def deal(leaf, place):
        dealt = jax.lax.map(lambda rows: sharding.constrain(leaf[rows.T], (place,)), order)
        dealt = jnp.moveaxis(dealt, 1, 0).reshape(parts, -1, *leaf.shape[1:])
        return sharding.constrain(dealt, (place,))

    leaves, treedef = jax.tree.flatten(arrays)
    apart = [sharding.with_device_axis(place) for place in places]
    dealt = [deal(leaf, place) for leaf, place in zip(leaves, apart, strict=True)]
    order = sharding.constrain(order.reshape(-1, parts).T, (sharding.leading(places[0]),))
    return jax.tree.unflatten(treedef, dealt), order


class Sampler(Source):
    """A pure function `key -> batch`."""

    def __init__(self, sample: Callable):
        self.sample = self.content = Partial(sample)

    def feed(self, key):
        return Sampled(self.sample, key)

    def __repr__(self) -> str:
        sample = self.sample.func
        return f"sampler {getattr(sample, '__name__', type(sample).__name__)}"


class Stream(Source):
    """Batches from the host."""

    def __init__(self, batches: Iterable, own: Callable = lambda batch: batch):
        self.batches, self.content = batches, None
        self._own = own  # makes a batch independent of the loader's memory

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
                yield self._own(batch)
            if empty or not again:
                return

    def __repr__(self) -> str:
        return f"stream {type(self.batches).__name__}"


def length(arrays: PyTree) -> int:
    return jax.tree.leaves(arrays)[0].shape[0]
