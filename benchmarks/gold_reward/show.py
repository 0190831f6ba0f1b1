"""Tables, figure and page, from the kept results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gold_reward.settings import (
    CAPS,
    FILE,
    MORE_SEEDS,
    MORE_WAYS,
    PAIRS,
    SEEDS,
    SMOL,
    SMOL_WAYS,
    SWEEP,
    SWEPT,
    TUNED,
    Point,
)
from benchmarks.harness import RESULTS
from bilevel.report import figures

FIGURE = RESULTS.parent.parent / "docs" / "figures" / "gold-reward.png"
ORDER = ("SFT", "IRL", "AIHF", "RLHF", "DPO", "AIHF-DPO", "IPO", "SPIN", "self-play AIHF")
LEARNS = ("IRL", "AIHF", "RLHF")  # a reward
DRAWN = ("SFT", "IRL", "AIHF", "RLHF", "DPO")


class Mean(NamedTuple):
    """Mean and standard error over the seeds."""

    mean: float
    error: float

    def __format__(self, digits: str) -> str:
        error = "" if np.isnan(self.error) else f" ± {self.error:{digits}}"  # of one seed
        return f"{self.mean:{digits}}{error}"


def mean(values: Sequence[float]) -> Mean:
    if len(values) == 1:
        return Mean(values[0], float("nan"))
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


class Kept:
    """The kept results of one gold reward."""

    def __init__(self, gold: str):
        record = json.loads(FILE.read_text())
        self.gold = gold
        self.rows = [row for row in record["rows"] if row["gold"] == gold]
        self.facts: dict[str, Any] = record["facts"][gold]
        self.samples: dict[str, Any] = record["samples"].get(gold, {})
        self.liked: dict[str, Any] = record["liked"].get(gold, {})
        self.choices: dict[str, Any] = record["choices"].get(gold, {})

    def runs(self, way: str, pairs: int = PAIRS, seeds: Sequence[int] = SEEDS) -> list[list[Point]]:
        """The checkpoints of each seed; none where one of them was not run."""
        pairs = 0 if way in SWEPT and way != "AIHF" and not pairs else pairs
        found = [
            [Point(*point) for point in row["points"]]
            for seed in seeds
            for row in self.rows
            if (row["way"], row["seed"], row["pairs"]) == (way, seed, pairs)
        ]
        return found if len(found) == len(seeds) else []

    def within(self, way: str, cap: float) -> float | None:
        """The best gold reward of the trials, at checkpoints within so many nats of the model."""
        rows = [row for row in self.rows if (row["way"], row["seed"]) == (way, TUNED)]
        points = [Point(*point) for row in rows for point in row["points"]]
        return max((p.gold for p in points if p.kl <= cap), default=None)

    def last(self, way: str, field: str, pairs: int = PAIRS) -> Mean:
        return mean([getattr(points[-1], field) for points in self.runs(way, pairs)])

    def swept(self, way: str, field: str = "gold") -> tuple[list[int], list[Mean]]:
        """A field against the number of pairs; without a pair, RLHF and DPO are SFT."""
        found = dict.fromkeys(sorted((*SWEEP, PAIRS)), way)
        if way != "AIHF":
            found[0] = "SFT"
        have = {n: w for n, w in found.items() if self.runs(w, PAIRS if w == "SFT" else n)}
        return list(have), [
            self.last(w, field, PAIRS if w == "SFT" else n) for n, w in have.items()
        ]


def table(kept: Kept) -> str:
    """One line a method."""
    lines = [
        "| | gold reward | KL | order of pairs | better than SFT | seconds |",
        "|---|---|---|---|---|---|",
        f"| the model itself | {kept.facts['base']:.3f} | 0 | – | – | – |",
    ]
    for way in ORDER:
        if not kept.runs(way):
            continue
        won = "–" if way == "SFT" else f"{kept.last(way, 'won'):.2f}"
        cells = (way, f"{kept.last(way, 'gold'):.3f}", f"{kept.last(way, 'kl'):.1f}",
                 f"{kept.last(way, 'accuracy'):.2f}", won,
                 f"{kept.last(way, 'seconds').mean:.1f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| the expert | {kept.facts['expert']:.3f} | – | – | – | – |")
    return "\n".join(lines)


def smollm2(file: Path = SMOL) -> str:
    """The same of SmolLM2; of every way, the seeds that it was run on."""
    record = json.loads(file.read_text())
    lines = ["| | seeds | gold reward | KL | order of pairs | better than SFT | seconds |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    facts = next(iter(record["facts"].values()))
    base, expert = ([*facts[name].values()] for name in ("base", "expert"))
    lines.append(f"| the model itself | {len(base)} | {mean(base):.3f} | 0 | – | – | – |")
    for way in (way for ways in SMOL_WAYS for way in ways):
        ends = [Point(*row["points"][-1]) for row in record["rows"] if row["way"] == way]
        if not ends:
            continue

        def over(name: str, digits: str, ends=ends) -> str:
            return format(mean([getattr(point, name) for point in ends]), digits)

        won = "–" if way == "SFT" else over("won", ".2f")
        seconds = f"{np.mean([point.seconds for point in ends]):.0f}"
        cells = (over("gold", ".3f"), over("kl", ".1f"), over("accuracy", ".2f"), won, seconds)
        lines.append(f"| {way} | {len(ends)} | {' | '.join(cells)} |")
    lines.append(f"| the expert | {len(expert)} | {mean(expert):.3f} | – | – | – | – |")
    return "\n".join(lines)


def caps(kept: Kept) -> str:
    """What the trials reached within a divergence, on the feedback that settings are chosen on."""
    lines = ["| within | " + " | ".join(f"{cap:g} nats" for cap in CAPS) + " |",
             "|---" * (len(CAPS) + 1) + "|"]  # fmt: skip
    for way in ORDER:
        found = [kept.within(way, cap) for cap in CAPS]
        if found[-1] is not None:
            cells = ("–" if gold is None else f"{gold:.3f}" for gold in found)
            lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen(kept: Kept) -> str:
    """The settings that the script chose; blank where a method has no such setting."""
    lines = ["| | step size | of the reward | β, τ, λ | decay of the reward | stopped at |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for way in ORDER:
        if way not in kept.choices or not kept.runs(way):
            continue
        (rate, reward_rate, beta, decay), _ = kept.choices[way]
        learns, steps = way in LEARNS, round(kept.runs(way)[0][-1].step)
        numbers = (f"{rate:g}", f"{reward_rate:g}" if learns else "",
                   "" if way == "SFT" else f"{beta:g}", f"{decay:g}" if learns else "")  # fmt: skip
        lines.append(f"| {' | '.join((way, *numbers, str(steps)))} |")
    return "\n".join(lines)


def sweep(kept: Kept) -> str:
    numbers = sorted((*SWEEP, PAIRS))
    lines = ["| pairs | " + " | ".join(map(str, numbers)) + " |", "|---" * (len(numbers) + 1) + "|"]
    for field, digits, of in (("gold", ".3f", ""), ("kl", ".1f", ", KL")):
        for way in SWEPT:
            have = dict(zip(*kept.swept(way, field), strict=True))
            cells = [f"{have[n]:{digits}}" if n in have else "–" for n in numbers]
            lines.append(f"| {way}{of} | {' | '.join(cells)} |")
    return "\n".join(lines)


def more(kept: Kept) -> str:
    """The ways on more seeds, and the last less the first, seed by seed."""
    lines = ["| | gold reward | KL | order of pairs |", "|---|---|---|---|"]
    ends = {way: [points[-1] for points in kept.runs(way, PAIRS, MORE_SEEDS)] for way in MORE_WAYS}
    for way, points in ends.items():
        gold, kl, order = (mean([getattr(p, name) for p in points])
                           for name in ("gold", "kl", "accuracy"))  # fmt: skip
        lines.append(f"| {way} | {gold:.3f} | {kl:.1f} | {order:.2f} |")
    sft, irl = ([p.gold for p in points] for points in ends.values())
    gained = mean(np.subtract(irl, sft).tolist())
    lines.append(f"| IRL less SFT, seed by seed | {gained:.3f} | | |")
    return "\n".join(lines)


def samples(kept: Kept, ways: Sequence[str] = ("base", "SFT", "DPO", "AIHF")) -> str:
    """What some policies say to the same prompts."""
    have = [way for way in ways if way in kept.samples]
    lines = ["| prompt | " + " | ".join(have) + " |", "|---" * (len(have) + 1) + "|"]
    for i, prompt in enumerate(kept.samples["prompts"]):
        said = (f"{kept.samples[way][0][i]} ({kept.samples[way][1][i]:+.2f})" for way in have)
        lines.append(f"| {prompt} | {' | '.join(said)} |")
    return "\n".join(lines)


def draw(kept: Kept) -> None:
    """Gold reward against divergence, against processor time, and against the number of pairs."""
    with figures.style():
        figure = figures.new_figure(11, 3.5)
        left, middle, right = figure.subplots(1, 3, sharey=True)
        for i, way in enumerate(DRAWN):
            runs = kept.runs(way)
            if not runs:
                continue
            many = np.array([[(p.kl, p.seconds, p.gold) for p in points] for points in runs])
            kl, seconds, gold = many.mean(axis=0).T
            error = many[..., 2].std(axis=0, ddof=1) / np.sqrt(len(runs))
            look = {"color": figures.series_color(i), "marker": figures.MARKERS[i], "label": way}
            left.errorbar(kl, gold, error, **look)
            middle.errorbar(seconds, gold, error, **look)
            if way in SWEPT:
                numbers, found = kept.swept(way)
                right.errorbar(numbers, [f.mean for f in found], [f.error for f in found], **look)
        sft = kept.last("SFT", "gold")
        right.axhline(sft.mean, color=figures.QUIET, linewidth=1, linestyle=":")
        for axes, name in ((left, "KL from the model, nats"), (middle, "processor seconds"),
                           (right, "pairs of preferences")):  # fmt: skip
            axes.axhline(kept.facts["base"], color=figures.QUIET, linewidth=1, zorder=0)
            axes.set_xlabel(name)
        left.set_ylabel("gold reward")
        left.legend(loc="lower right")
        left.set_title("How far from the model")
        middle.set_title("How long")
        right.set_title("How many preferences")
        figure.patch.set_alpha(1)
        figure.savefig(FIGURE, dpi=130, metadata={"Software": None})


def golds() -> list[str]:
    """The gold rewards with results of all three seeds."""
    facts = json.loads(FILE.read_text())["facts"]
    return [gold for gold in facts if Kept(gold).runs("AIHF") and Kept(gold).samples]


def parts() -> dict[str, str]:
    """The generated parts of `docs/gold-reward.md`."""
    kept = {gold: Kept(gold) for gold in golds()}
    sentiment = kept["sentiment"]
    liked, disliked = sentiment.liked["AIHF"]
    words = (
        f"The words that the reward of AIHF likes best: {', '.join(liked)}. Least: "
        f"{', '.join(disliked)}."
    )
    found = {gold: table(one) for gold, one in kept.items()}
    found |= {"caps": caps(sentiment), "chosen": chosen(sentiment)}
    found |= {"samples": samples(sentiment), "liked": words}
    if sentiment.runs(MORE_WAYS[-1], PAIRS, MORE_SEEDS):
        found["more"] = more(sentiment)
    if SMOL.is_file():
        found["smollm2"] = smollm2()
    return found | ({"pairs": sweep(sentiment)} if len(sentiment.swept("AIHF")[0]) > 1 else {})
