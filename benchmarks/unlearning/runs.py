"""All runs; what the file of results already holds is not run again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from benchmarks.harness import RESULTS, machine
from benchmarks.unlearning import judging
from benchmarks.unlearning.learner import Learner, Pairs, trained
from benchmarks.unlearning.ways import WAYS, forgotten
from benchmarks.unlearning.world import World, worlds
from bilevel.apps.llm.unlearning import judge

FILES = {"small": RESULTS / "unlearning.json", "smollm2": RESULTS / "unlearning_smol.json"}
BEFORE, NEVER = "before", "never told"
NAMES = ("forget01", "forget05")


class Book:
    """The kept results, written after every run."""

    def __init__(self, file: Path):
        self.file = file

    def rows(self) -> list[dict[str, Any]]:
        return json.loads(self.file.read_text())["rows"] if self.file.is_file() else []

    def has(self, **key: Any) -> bool:
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows())

    def add(self, **row: Any) -> None:
        kept = {"machine": machine(), "rows": [*self.rows(), _rounded(row)]}
        text = json.dumps(kept, ensure_ascii=False)
        self.file.write_text(text.replace('{"set"', '\n{"set"') + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Set(NamedTuple):
    """A forget set, and what is asked of a model."""

    name: str
    world: World
    questions: dict[str, judge.Questions]
    learner: Learner
    book: Book
    told: Callable[[str], Any]

    def missing(self) -> list[tuple[str, float]]:
        swept = self.name in self.learner.settings.swept
        return [(way, setting) for way, setting in wanted(swept)
                if not self.book.has(set=self.name, way=way, setting=setting)]  # fmt: skip

    def keep(self, way: str, setting: float, y: PyTree, seconds: float) -> None:
        row = judging.judged(self.learner, y, self.questions)
        self.book.add(set=self.name, way=way, setting=setting, seconds=seconds, **row)
        forget, retain = (row["numbers"][kind]["probability"] for kind in ("forget", "retain"))
        self.told(
            f"{self.name}, {way} {setting:g}: forget {forget:.3f}, retain {retain:.3f}, utility "
            f"{row['utility']:.3f}; {seconds:.0f} s"
        )


def everything(
    learner: Learner,
    pairs: dict[str, Pairs],
    names: list[str],
    models: Path | None,
    file: Path,
    told: Callable[[str], Any],
) -> None:
    """All runs on the given forget sets.

    Args:
        models: folder that trained parameters are kept in.
    """
    every = worlds(pairs, learner.text)
    before = None
    for name in names:
        one = every[name]
        questions = judging.questions(learner, one)
        some = Set(name, one, questions, learner, Book(file), told)
        for way, setting in some.missing():
            start = time.process_time()
            if way == NEVER:
                y = trained(learner, one.retained(), models and models / f"never-{name}.eqx")
                some.keep(way, setting, y, time.process_time() - start)
                continue
            if before is None:  # all sets are told the same
                before = trained(learner, every[NAMES[0]].told(), models and models / "told.eqx")
            if way == BEFORE:
                some.keep(way, setting, before, time.process_time() - start)
                continue
            steps = learner.settings.forgetting[name]
            some.keep(way, setting, *forgotten(WAYS[way], setting, learner, one, before, steps))


def wanted(swept: bool) -> list[tuple[str, float]]:
    """Ways and settings on a forget set."""
    found = [(BEFORE, 0.0), (NEVER, 0.0), *((way, one.setting) for way, one in WAYS.items())]
    if swept:
        found += [(way, s) for way, one in WAYS.items() for s in one.swept if s != one.setting]
    return found
