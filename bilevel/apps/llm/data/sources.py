"""One level's samples from several sources of unequal length, side by side in a tuple."""

from collections.abc import Iterable
from typing import Any

import jax

from bilevel.data.feeds import Feeder
from bilevel.data.sources import Source
from bilevel.problem import Samples
from bilevel.typing import RandomKey


class Together(Source):
    """Batches of a tuple or NamedTuple, each field drawn from a source of its own (or `None`).

    Demonstrations and preferences differ in number, and each keeps its own order and batch size.
    """

    def __init__(self, parts: Any):
        self.parts = parts
        self.content = _like(parts, (p and p.content for p in parts))

    def feed(self, key: RandomKey) -> "TogetherFeeder":
        keys = jax.random.split(key, len(self.parts))
        feeders = (p and p.feed(k) for p, k in zip(self.parts, keys, strict=True))
        return TogetherFeeder(_like(self.parts, feeders))

    def __repr__(self) -> str:
        names = getattr(self.parts, "_fields", range(len(self.parts)))
        named = zip(names, self.parts, strict=True)
        return ", ".join(f"{name}: {part!r}" for name, part in named if part is not None)


class TogetherFeeder(Feeder):
    feeders: Any

    def draw(self, k, n):
        return _Side(_like(self.feeders, (f and f.draw(k, n) for f in self.feeders)))


class _Side(Samples):
    parts: Any

    def __getitem__(self, i):
        return _like(self.parts, (None if part is None else part[i] for part in self.parts))


def _like(parts: Any, items: Iterable[Any]) -> Any:
    """The items as a tuple of the same kind."""
    return parts._make(items) if hasattr(parts, "_make") else tuple(items)
