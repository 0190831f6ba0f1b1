"""All runs; what the file of results already holds is not run again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from benchmarks.harness import RESULTS, machine
from benchmarks.unlearning import judging
from benchmarks.unlearning.ways import STEPS, WAYS, forgotten
from benchmarks.unlearning.world import MODEL, Text, World, learned, read, worlds
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.unlearning import judge

FILE = RESULTS / "unlearning.json"
BEFORE, NEVER = "before", "never told"
SWEPT = "forget01"  # whose settings are swept
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
    text: Text
    book: Book
    told: Callable[[str], Any]

    def missing(self) -> list[tuple[str, float]]:
        return [(way, setting) for way, setting in wanted(self.name)
                if not self.book.has(set=self.name, way=way, setting=setting)]  # fmt: skip

    def keep(self, way: str, setting: float, y: PyTree, seconds: float) -> None:
        row = judging.judged(y, self.questions, self.text)
        self.book.add(set=self.name, way=way, setting=setting, seconds=seconds, **row)
        forget, retain = (row["numbers"][kind]["probability"] for kind in ("forget", "retain"))
        self.told(
            f"{self.name}, {way} {setting:g}: forget {forget:.3f}, retain {retain:.3f}, utility "
            f"{row['utility']:.3f}; {seconds:.0f} s"
        )


def everything(
    tofu: Path, names: list[str], models: Path | None, file: Path, told: Callable[[str], Any]
) -> None:
    """All runs on the given forget sets.

    Args:
        tofu: folder of tofu.json.
        models: folder that trained models are kept in.
    """
    pairs = read(tofu / "tofu.json")
    text = Text(pairs)
    every = worlds(pairs, text)
    before = None
    for name in names:
        one = every[name]
        some = Set(name, one, judging.questions(one), text, Book(file), told)
        for way, setting in some.missing():
            start = time.process_time()
            if way == NEVER:
                y = trained(one.retained(), models and models / f"never-{name}")
                some.keep(way, setting, y, time.process_time() - start)
                continue
            if before is None:  # all sets are told the same
                before = trained(every[SWEPT].told(), models and models / "told")
            if way == BEFORE:
                some.keep(way, setting, before, time.process_time() - start)
                continue
            some.keep(way, setting, *forgotten(WAYS[way], setting, one, before, STEPS[name]))


def wanted(name: str) -> list[tuple[str, float]]:
    """Ways and settings on a forget set."""
    found = [(BEFORE, 0.0), *((way, one.setting) for way, one in WAYS.items())]
    if name == SWEPT:
        found += [(way, s) for way, one in WAYS.items() for s in one.swept if s != one.setting]
    return [*found, (NEVER, 0.0)]


def trained(rows: list[Row], folder: Path | None) -> PyTree:
    """A model that was told these rows, from the folder if it is there."""
    if folder is not None and folder.is_dir():
        return checkpoint.load(folder).params
    params = learned(rows)
    if folder is not None:
        checkpoint.save(checkpoint.new(MODEL, params), folder)
    return params
