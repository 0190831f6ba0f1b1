"""One level's samples from several sources of unequal length, side by side in a tuple."""

from typing import Any

import jax

from bilevel.data.feeds import Feeder
from bilevel.data.sources import Source
from bilevel.problem import Samples
from bilevel.typing import RandomKey


class Together(Source):
    """Batches of a NamedTuple, each field drawn from a source of its own (or `None`).

    Demonstrations and preferences differ in number, and each keeps its own order and batch size.
    """

    def __init__(self, parts: Any):
        self.parts = parts
        self.content = type(parts)(*(p and p.content for p in parts))

    def feed(self, key: RandomKey) -> "TogetherFeeder":
        keys = jax.random.split(key, len(self.parts))
        feeders = (p and p.feed(k) for p, k in zip(self.parts, keys, strict=True))
        return TogetherFeeder(type(self.parts)(*feeders))

    def __repr__(self) -> str:
        named = zip(self.parts._fields, self.parts, strict=True)
        return ", ".join(f"{name}: {part!r}" for name, part in named if part is not None)


class TogetherFeeder(Feeder):
    feeders: Any

    def draw(self, k, n):
        return _Side(type(self.feeders)(*(f and f.draw(k, n) for f in self.feeders)))


class _Side(Samples):
    parts: Any

    def __getitem__(self, i):
        return type(self.parts)(*(None if part is None else part[i] for part in self.parts))
