"""All runs: the choice of settings, three seeds, other numbers of preferences, more seeds."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gold_reward.feedback import Base, World, said, scores, world
from benchmarks.gold_reward.settings import (
    KL,
    MORE_SEEDS,
    MORE_WAYS,
    PAIRS,
    SEEDS,
    SWEEP,
    SWEPT,
    SWEPT_GOLD,
    TUNED,
    Point,
)
from benchmarks.gold_reward.ways import BY_NAME, WAYS, Reached, Setting, Way, run, trials
from benchmarks.gold_reward.world import base
from benchmarks.harness import machine
from bilevel.apps.llm.policies.policy import generate

SHOWN = 10  # samples


class Choice(NamedTuple):
    setting: Setting
    until: int  # checkpoint to stop at


class Book:
    """The kept results, written after every run; what is already there is not run again."""

    def __init__(self, file: Path):
        self.file = file
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": []}

    def find(self, **key: Any) -> dict | None:
        rows = self.kept["rows"]
        return next((row for row in rows if all(row[k] == v for k, v in key.items())), None)

    def add(self, **row: Any) -> None:
        """Keep a run, in place of one with another setting that is no trial."""
        if row["seed"] != TUNED:
            same = ("gold", "way", "seed", "pairs")
            rows = self.kept["rows"]
            self.kept["rows"] = [one for one in rows if any(one[k] != row[k] for k in same)]
        self.kept["rows"].append(row)
        self.save()

    def save(self) -> None:
        text = json.dumps({"machine": machine(), **self.kept}, indent=None, ensure_ascii=False)
        self.file.write_text(text.replace('{"gold"', '\n{"gold"') + "\n")


def best(rows: list[tuple[Setting, list[Point]]]) -> Choice:
    """The setting and checkpoint with the best gold reward, among those within KL of the base."""
    every = [(p, setting, at) for setting, points in rows for at, p in enumerate(points, 1)]
    near = [one for one in every if one[0].kl <= KL] or [min(every, key=lambda one: one[0].kl)]
    _, setting, at = max(near, key=lambda one: one[0].gold)
    return Choice(setting, at)


def rounded(points: list[Point]) -> list[list[float | None]]:
    return [[None if v is None else float(f"{v:.4g}") for v in point] for point in points]


class Runs:
    """All runs that are scored by the same gold reward."""

    def __init__(self, trained: Base, gold: str, book: Book, told: Callable[[str], object]):
        self.base, self.gold, self.book, self.told = trained, gold, book, told
        self.sft: dict[int, Reached] = {}

    @functools.cache  # noqa: B019
    def world(self, seed: int) -> World:
        return world(self.base, self.gold, seed)

    def one(self, way: Way, setting: Setting, seed: int, pairs: int, until: int | None = None):
        """The points of a run, from the kept results if they are there, else also the run."""
        key = {"gold": self.gold, "way": way.name, "seed": seed, "pairs": pairs,
               "setting": [float(f"{v:.4g}") for v in setting], "until": until}  # fmt: skip
        if (row := self.book.find(**key)) is not None:
            return [Point(*point) for point in row["points"]], None
        more = {} if until is None else {"until": until}
        found = run(self.world(seed), way, setting, pairs=pairs, key=seed,
                    sft=self.sft.get(seed), **more)  # fmt: skip
        self.book.add(**key, points=rounded(found.points))
        last = found.points[-1]
        self.told(f"{self.gold}, {way.name}, seed {seed}, {pairs} pairs, {tuple(setting)}: gold "
                  f"{last.gold:.3f}, KL {last.kl:.2f}, {last.seconds:.1f} s")  # fmt: skip
        return found.points, found

    def choice(self, way: Way) -> Choice:
        return best([(s, self.one(way, s, TUNED, PAIRS)[0]) for s in trials(way.ranges)])

    def start(self, seeds: Sequence[int]) -> None:
        """SFT, where others start; not kept in the book, since its policy is needed."""
        way = BY_NAME["SFT"]
        setting, until = self.choice(way)
        for seed in seeds:
            self.sft[seed] = run(self.world(seed), way, setting, pairs=0, key=seed, until=until)

    def found(self, way: Way, pairs: int, seeds: Sequence[int] = SEEDS) -> None:
        setting, until = self.choice(way)
        choices = self.book.kept.setdefault("choices", {}).setdefault(self.gold, {})
        choices[way.name] = [list(map(float, setting)), until]
        for seed in seeds:
            _, reached = self.one(way, setting, seed, pairs, until)
            if seed == SEEDS[0] and pairs == PAIRS and reached is not None:
                self.keep_samples(way, reached)

    def keep_samples(self, way: Way, reached: Reached) -> None:
        """What it says to the first prompts, and what its reward likes."""
        samples = self.book.kept.setdefault("samples", {}).setdefault(self.gold, {})
        given, sizes = self.world(SEEDS[0]), self.base.sizes
        few = jax.tree.map(
            lambda leaf: leaf[: sizes.answers * SHOWN : sizes.answers], given.prompts
        )
        for name, y in ((way.name, reached.policy), ("base", self.base.params)):
            drawn = generate(self.base.policy, y, few, jax.random.key(3))
            true = scores(self.base, self.gold, drawn)
            samples[name] = [said(self.base, drawn), [round(float(v), 2) for v in true]]
        samples["prompts"] = said(self.base, few)
        if reached.reward is not None and self.base.words is not None:
            order = np.argsort(-np.asarray(reached.reward["token"]))
            liked = self.book.kept.setdefault("liked", {}).setdefault(self.gold, {})
            liked[way.name] = [[self.base.words[i] for i in part]
                               for part in (order[:24], order[:-13:-1])]  # fmt: skip
        self.book.save()

    def facts(self) -> None:
        """The mean gold reward of the base and of the expert."""
        given = [self.world(seed) for seed in SEEDS]
        prompts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(g.prompts for g in given))
        drawn = generate(self.base.policy, self.base.params, prompts, jax.random.key(4))
        expert = [scores(self.base, self.gold, one.demonstrations).mean() for one in given]
        own = float(scores(self.base, self.gold, drawn).mean())
        found = {"base": round(own, 4), "expert": round(float(np.mean(expert)), 4)}
        self.book.kept.setdefault("facts", {})[self.gold] = found
        self.book.save()

    def everything(self) -> None:
        self.facts()
        self.start((TUNED, *SEEDS))
        for way in WAYS:
            self.choice(way)
        for way in WAYS:
            self.found(way, PAIRS)
        if self.gold == SWEPT_GOLD:
            for name in SWEPT:
                for pairs in SWEEP if name == "AIHF" else SWEEP[1:]:
                    self.found(BY_NAME[name], pairs)
            self.start(MORE_SEEDS)
            for name in MORE_WAYS:
                self.found(BY_NAME[name], PAIRS, MORE_SEEDS)


def everything(golds: Sequence[str], file: Path, told: Callable[[str], object]) -> None:
    """All runs that the file does not hold."""
    trained, book = base(), Book(file)
    for gold in golds:
        Runs(trained, gold, book, told).everything()
