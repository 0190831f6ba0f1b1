"""Samples for the next chunk: resident arrays as they are, streams stacked and prefetched."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.data import Data, Feed, Feeder, Pulled, Repeat, Rows, Stream, Whole
from bilevel.problem import Batch, Draws, Stacked
from bilevel.typing import RandomKey


class Puller:
    """Hands each chunk its feed. Arrays stay on the device; iterators are read ahead."""

    def __init__(self, data: Data, key: RandomKey, draws: Draws):
        self._data, self._draws = data, draws
        upper, lower = jax.random.split(key)
        self._streams: dict[str, Iterator] = {}
        self._sizes = {}
        feeders = {}
        for level, source, half in (("upper", data.upper, upper), ("lower", data.lower, lower)):
            if isinstance(source, Stream):
                self._streams[level] = iter(source)
            else:
                feeders[level] = source.feed(half)
            self._sizes[level] = _rows_of(source)
        self._feeders: dict[str, Feeder] = feeders
        # Without its streams, which have no content to compare.
        nothing = Repeat(None)
        self.resident = Feed(feeders.get("upper", nothing), feeders.get("lower", nothing), draws)
        self.first = self._peek()
        self._ahead: Future | None = None
        self._thread = ThreadPoolExecutor(1)  # starts with the first stream it reads
        self._step = 0
        self.notes: list[str] = []

    @property
    def shapes(self) -> Batch:
        """One step's samples, in a form that abstract evaluation takes."""

        def level(name: str, n: int) -> Any:
            if name in self._streams:
                one = getattr(self.first, name)
                return (
                    one
                    if n == 1
                    else Stacked(jax.tree.map(lambda leaf: jnp.stack([leaf] * n), one))
                )
            samples = self._feeders[name].draw(jnp.int32(0), n)
            return samples[0] if n == 1 else samples

        return Batch(level("upper", self._draws.upper), level("lower", self._draws.lower))

    def start(self, step: int) -> None:
        """Go to a step: streams skip the batches that steps before it consumed."""
        self._step = step
        for level, stream in self._streams.items():
            skipped = step * getattr(self._draws, level)
            next(itertools.islice(stream, skipped, skipped), None)

    def pull(self, n: int, following: int) -> tuple[Feed, int]:
        """The feed of the next n steps, and how many of them the data allow.

        The batches of the `following` steps after them are read ahead while these compute.
        """
        if not self._streams:
            self._step += n
            return self.resident, n
        stacked = self._ahead.result() if self._ahead is not None else self._stack(n)
        got = min(len(jax.tree.leaves(half)[0]) for half in stacked.values())
        first = jnp.int32(self._step)
        self._step += got
        more = got == n and following > 0
        self._ahead = self._thread.submit(self._stack, following) if more else None
        levels = self._feeders | {name: Pulled(half, first) for name, half in stacked.items()}
        return Feed(levels["upper"], levels["lower"], self._draws), got

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def consumed(self, steps: int) -> dict[str, int]:
        """Rows drawn at each level, where batches have rows."""
        return {
            level: steps * getattr(self._draws, level) * size
            for level, size in self._sizes.items()
            if size is not None
        }

    def _peek(self) -> Batch:
        halves = {}
        for level in ("upper", "lower"):
            if level in self._streams:
                try:
                    batch = next(self._streams[level])
                except StopIteration:
                    raise ValueError(
                        f"Data.{level} is empty: its iterator gave no batch."
                    ) from None
                self._streams[level] = itertools.chain([batch], self._streams[level])
                halves[level] = jax.tree.map(jnp.asarray, batch)
            else:
                halves[level] = self._feeders[level].draw(jnp.int32(0), 1)[0]
        return Batch(**halves)

    def _stack(self, n: int) -> dict[str, Any]:
        """Up to n steps' batches of every stream, on leading axes step and draw."""
        stacked = {}
        for level, stream in self._streams.items():
            draws = getattr(self._draws, level)
            batches = list(itertools.islice(stream, n * draws))
            whole = len(batches) // draws
            if not whole:
                return {level: np.zeros((0,))}
            stacked[level] = jax.tree.map(
                lambda *leaves, whole=whole, draws=draws: np.stack(leaves[: whole * draws]).reshape(
                    whole, draws, *np.shape(leaves[0])
                ),
                *batches,
            )
        return stacked


def _rows_of(source: Any) -> int | None:
    if isinstance(source, Rows):
        return source.batch_size
    if isinstance(source, Whole) and source.arrays is not None:
        return len(jax.tree.leaves(source.arrays)[0])
    return None
