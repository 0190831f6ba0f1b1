"""Samples for the next chunk: resident arrays as they are, streams stacked and prefetched."""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import sharding
from bilevel.data import (
    Data,
    Feed,
    Feeder,
    InBlocks,
    Pulled,
    Repeat,
    Rows,
    Stream,
    Whole,
    level_keys,
)
from bilevel.problem import Batch, Draws
from bilevel.typing import RandomKey

MOST_LEFT_OUT = 100  # smaller batches in a row before a stream is refused


class Prefetcher:
    """Hands each chunk its feed. Arrays stay on the device; iterators are read ahead."""

    def __init__(self, data: Data, key: RandomKey, draws: Draws, waiting: Callable = nullcontext):
        """`waiting()` is entered where a stream may block."""
        self._data, self._draws, self._waiting = data, draws, waiting
        upper, lower = level_keys(key)
        self._streams: dict[str, Iterator] = {}
        self._sizes = {}
        feeders, self._examples = {}, {}
        for level, source, half in (("upper", data.upper, upper), ("lower", data.lower, lower)):
            if isinstance(source, Stream):
                self._streams[level] = iter(source)
            else:
                feeders[level] = data.feeder(level, key)
                self._examples[level] = (
                    jax.eval_shape(source.feed_of, source.arrays, half)
                    if isinstance(source, Rows)
                    else feeders[level]
                )
            self._sizes[level] = _rows_of(source)
        self._feeders: dict[str, Feeder] = feeders
        nothing = Repeat(None)
        self.resident = Feed(feeders.get("upper", nothing), feeders.get("lower", nothing), draws)
        self.first = self._peek()
        self._ahead: Future | None = None
        self._step = 0
        self.left_out = dict.fromkeys(self._streams, 0)  # smaller batches, by level

    @property
    def example(self) -> Feed:
        """A feed of one step, the first, for abstract evaluation; the same on all devices."""
        levels = dict(self._examples)
        for name in self._streams:
            lead = (1, getattr(self._draws, name))
            one = jax.tree.map(
                lambda leaf, lead=lead: jnp.broadcast_to(leaf, lead + leaf.shape),
                getattr(self.first, name),
            )
            levels[name] = Pulled(one, jnp.int32(0))
        return Feed(levels["upper"], levels["lower"], self._draws)

    def start(self, step: int, skip: int) -> None:
        """Go to a step; streams leave out the batches that `skip` steps before it consumed."""
        self._step = step
        for level, stream in self._streams.items():
            skipped = skip * getattr(self._draws, level)
            next(itertools.islice(stream, skipped, skipped), None)

    def next_chunk(self, n: int, following: int) -> tuple[Feed, int]:
        """The feed of the next n steps, and how many of them the data allow.

        The batches of the `following` steps after them are read ahead while these compute.
        """
        if not self._streams:
            self._step += n
            return self.resident, n
        with self._waiting():
            stacked = self._ahead.result() if self._ahead is not None else self._stack(n)
        got = min(len(jax.tree.leaves(half)[0]) for half in stacked.values())
        first = jnp.int32(self._step)
        self._step += got
        more = got == n and following > 0
        self._ahead = _in_background(self._stack, following) if more else None
        levels = self._feeders | {name: Pulled(half, first) for name, half in stacked.items()}
        return Feed(levels["upper"], levels["lower"], self._draws), got

    def consumed(self, steps: int) -> dict[str, int]:
        """Rows drawn at each level, where batches have rows."""
        return {
            level: steps * getattr(self._draws, level) * size
            for level, size in self._sizes.items()
            if size is not None
        }

    def _peek(self) -> Batch:
        if self._data.blocks is not None:  # a draw has fewer blocks than y
            return self._data.full or Batch()
        halves = {}
        for level in ("upper", "lower"):
            if level in self._streams:
                try:
                    with self._waiting():
                        batch = next(self._streams[level])
                except StopIteration:
                    raise ValueError(
                        f"Data.{level} is empty: its iterator gave no batch."
                    ) from None
                rest = itertools.chain([batch], self._streams[level])
                self._streams[level] = self._alike(level, batch, rest)
                halves[level] = sharding.with_auto_axes(jax.tree.map(jnp.asarray, batch))
            else:
                halves[level] = self._feeders[level].draw(jnp.int32(0), 1)[0]
        return Batch(**halves)

    def _alike(self, level: str, first: Any, batches: Iterator) -> Iterator:
        """The batches shaped like the first; those with fewer rows, at the end of an epoch, are
        left out and counted.

        Raises:
            ValueError: a batch of another form.
        """
        like, refused = _shapes(first), 0
        for batch in batches:
            shapes = _shapes(batch)
            if shapes == like:
                refused = 0
                yield batch
            elif refused < MOST_LEFT_OUT and _is_smaller(batch, first):
                refused += 1
                self.left_out[level] += 1
            else:
                raise ValueError(
                    f"Data.{level} gave batches of different shapes, {like} and {shapes}; make "
                    "them alike, for example by leaving out the last, smaller batch of an epoch."
                )

    def _stack(self, n: int) -> dict[str, Any]:
        """Up to n steps' batches of every stream, on leading axes step and draw."""
        stacked = {}
        for level, stream in self._streams.items():
            draws = getattr(self._draws, level)
            batches = list(itertools.islice(stream, n * draws))
            whole = len(batches) // draws
            if not whole:
                stacked[level] = np.zeros((0,))
                continue
            stacked[level] = jax.tree.map(
                functools.partial(_stacked, whole, draws), *batches[: whole * draws]
            )
        return stacked


def _stacked(steps: int, draws: int, *batches: Any) -> Any:
    """One leaf of all batches, on the host unless it is split over devices."""
    split = sharding.mesh_of(batches) is not None
    stack = jnp.stack(sharding.with_auto_axes(batches)) if split else np.stack(batches)
    return stack.reshape(steps, draws, *np.shape(batches[0]))


def _in_background(fn: Callable, *args: Any) -> Future:
    """Calls a function in a thread that does not keep the process alive."""
    future = Future()

    def run():
        try:
            future.set_result(fn(*args))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _is_smaller(batch: Any, first: Any) -> bool:
    """Whether a batch is the first one with fewer rows."""
    if jax.tree.structure(batch) != jax.tree.structure(first):
        return False
    pairs = list(zip(jax.tree.leaves(batch), jax.tree.leaves(first), strict=True))
    rows = {np.shape(leaf)[:1] for leaf, _ in pairs}
    fewer = all(np.shape(leaf)[:1] < np.shape(full)[:1] for leaf, full in pairs)
    return len(rows) == 1 and fewer and all(np.shape(a)[1:] == np.shape(b)[1:] for a, b in pairs)


def _shapes(batch: Any) -> Any:
    return jax.tree.map(np.shape, batch)


def _rows_of(source: Any) -> int | None:
    if isinstance(source, Rows):
        return source.batch_size
    if isinstance(source, InBlocks):
        return source.size
    if isinstance(source, Whole) and source.arrays is not None:
        return len(jax.tree.leaves(source.arrays)[0])
    return None
