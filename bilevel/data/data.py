"""The samples of both levels."""

import functools
from typing import Any

import jax

from bilevel.data.blocks import InBlocks, check_blocks, in_blocks
from bilevel.data.feeds import Feed, Feeder
from bilevel.data.reading import ORDERS, as_source
from bilevel.data.sources import Rows, Stream, Whole
from bilevel.problem import Batch, Draws
from bilevel.typing import RandomKey


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
            rows independently. "partition" cuts the rows, in the order given, into fixed
            mini-batches and draws one uniformly at each step (with several draws a step, those
            that follow it), for methods that remember every mini-batch: shuffle the rows first
            if their order means something. Where batch_size does not divide the rows, some
            mini-batches have one row less, and each loss, taken for a mean over its rows, is
            weighed by their number.
        blocks: I, for a problem of m lower problems (`Problem(..., blocks=m)`) and a method that
            takes a few at a time. Arrays have leading axes (m, n, ...), block and row. A batch is
            I blocks, drawn without replacement, the same at both levels, and `batch_size` rows of
            each, from a random place of the block's order; all n rows when absent (then a leaf
            needs no axis of rows). Without `blocks` a batch is all of it, (m, n, ...).

    Arrays whose rows are split over a mesh (`jax.device_put(arrays, NamedSharding(mesh, ...))`)
    stay split. A batch holds the same rows as on one device, an equal share from every device; a
    slice is taken without communication, while "replacement" passes its rows between the devices.

    Raises:
        ValueError: empty data, leaves of unequal length, NaN, a batch larger than the data, an
            unknown order, more blocks than there are; a partition of rows split over devices into
            batches that are not equal.
    """

    def __init__(
        self,
        upper: Any = None,
        lower: Any = None,
        batch_size: int | Batch | None = None,
        order: str = "epochs",
        blocks: int | None = None,
    ):
        if order not in ORDERS:
            raise ValueError(f"Data.order is {order!r}; it is one of {', '.join(ORDERS)}.")
        sizes = batch_size if isinstance(batch_size, Batch) else Batch(batch_size, batch_size)
        self.blocks = blocks
        read = as_source if blocks is None else functools.partial(in_blocks, blocks)
        self.upper = read("upper", upper, sizes.upper, order)
        self.lower = read("lower", lower, sizes.lower, order)
        check_blocks(self.upper, self.lower)

    def feed(self, key: RandomKey, draws: Draws) -> "Feed":
        """What a compiled loop draws from; the same for the same key."""
        return Feed(self.feeder("upper", key), self.feeder("lower", key), draws)

    def feeder(self, level: str, key: RandomKey) -> "Feeder":
        """What one level draws from; the blocks of both, where there are any, are the same."""
        source, own = getattr(self, level), dict(zip(Batch._fields, level_keys(key), strict=False))
        if isinstance(source, InBlocks):
            return source.feed_with(jax.random.fold_in(key, 0xB10C), own[level])
        return source.feed(own[level])

    @property
    def full(self) -> Batch | None:
        """Both levels' whole data, or `None` if a level has no such thing."""
        upper, lower = self.upper, self.lower
        if isinstance(upper, Whole | Rows | InBlocks) and isinstance(
            lower, Whole | Rows | InBlocks
        ):
            return Batch(upper.arrays, lower.arrays)
        return None

    @property
    def batches(self) -> Batch:
        """How many batches make up the data of each level; `None` where they have no end."""
        return Batch(self.upper.n_batches, self.lower.n_batches)

    @property
    def content(self) -> Batch:
        """What a resumed run must find again."""
        return Batch(self.upper.content, self.lower.content)

    @property
    def streams(self) -> bool:
        """Whether a level comes from an iterator, which only the host can pull."""
        return isinstance(self.upper, Stream) or isinstance(self.lower, Stream)

    def __repr__(self) -> str:
        return f"Data(upper={self.upper!r}, lower={self.lower!r})"


def level_keys(key: RandomKey) -> tuple[RandomKey, RandomKey]:
    """A key for each level's samples, independent of what a method derives from that key."""
    upper, lower = jax.random.split(jax.random.fold_in(key, 0xDA7A))
    return upper, lower
