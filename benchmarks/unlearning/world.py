"""Questions and answers about invented authors (TOFU): who is told what.

Maini, Feng, Schwarzschild, Lipton, Kolter. "TOFU: a task of fictitious unlearning for LLMs". COLM
2024, arXiv:2401.06121. The file has 700 of its 4000 pairs. The first two authors of its forget10
are never told to any model, so that there are answers of the same kind that none has seen.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.unlearning.learner import Pairs, Text
from bilevel.apps.llm.data.encode import Row

UNSEEN = 40  # pairs at the beginning of forget10
PARTS = {"forget01": 40, "forget05": 200, "forget10": 400, "retain": 300, "real_authors": 100,
         "world_facts": 117}  # fmt: skip


class World(NamedTuple):
    """The pairs of each kind as tokens."""

    forget: list[Row]
    retain: list[Row]  # about the other invented authors
    authors: list[Row]  # about real ones
    facts: list[Row]
    unseen: list[Row]  # about invented authors that no model is told of

    def told(self) -> list[Row]:
        """What the model knows before it forgets."""
        return [*self.forget, *self.retained()]

    def retained(self) -> list[Row]:
        """What a model that was never told knows."""
        return [*self.retain, *self.authors, *self.facts]


def read(file: Path) -> dict[str, Pairs]:
    """Questions and answers of each part of tofu.json.

    Raises:
        ValueError: a part or an entry that is not what it should be.
    """
    found = json.loads(file.read_text())
    pairs = {}
    for part, count in PARTS.items():
        rows = found.get(part)
        if not isinstance(rows, list) or len(rows) != count:
            raise ValueError(f"{file} has no list {part!r} of {count} pairs.")
        pairs[part] = [_pair(row, f"{file}, {part}, entry {i}") for i, row in enumerate(rows, 1)]
    return pairs


def _pair(row: Any, where: str) -> tuple[str, str]:
    told = row if isinstance(row, dict) else {}
    asked, said = told.get("question"), told.get("answer")
    if not (isinstance(asked, str) and asked and isinstance(said, str) and said):
        raise ValueError(f'{where}: texts "question" and "answer" are needed.')
    return asked, said


def worlds(pairs: dict[str, Pairs], text: Text) -> dict[str, World]:
    """What is told, and what of it is to be forgotten: two authors, or ten, of 33."""
    unseen, told = pairs["forget10"][:UNSEEN], pairs["forget10"][UNSEEN:]
    found = {}
    for part in ("forget01", "forget05"):
        forget = pairs[part]
        if len({*forget} & {*told}) < len(forget):
            raise ValueError(f"{part} is not among the last pairs of forget10.")
        retain = [pair for pair in told if pair not in {*forget}] + pairs["retain"]
        kinds = forget, retain, pairs["real_authors"], pairs["world_facts"], unseen
        found[part] = World(*map(text.rows, kinds))
    return found
