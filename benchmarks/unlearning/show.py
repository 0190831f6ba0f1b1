"""Table and picture, from the kept results."""

from typing import Any

import numpy as np

from benchmarks.harness import RESULTS
from benchmarks.unlearning.runs import BEFORE, FILES, NAMES, NEVER, Book
from benchmarks.unlearning.ways import WAYS
from bilevel.apps.llm.unlearning import metrics
from bilevel.report import figures

PICTURE = RESULTS.parent.parent / "docs" / "apps" / "pictures" / "unlearning-tofu.png"
SWEPT = "forget01"  # the set of the picture
HEADS = ("", "forget: probability", "ROUGE-L", "verbatim", "retain: probability", "ROUGE-L",
         "model utility", "forget quality", "privacy leakage")  # fmt: skip


class Kept:
    """The kept results of one forget set."""

    def __init__(self, model: str, name: str):
        self.rows = [row for row in Book(FILES[model]).rows() if row["set"] == name]
        (self.never,) = (row for row in self.rows if row["way"] == NEVER)

    def quality(self, row: dict[str, Any]) -> float:
        return metrics.forget_quality(np.array(row["ratios"]), np.array(self.never["ratios"]))

    def leakage(self, row: dict[str, Any]) -> float:
        return metrics.privacy_leakage(row["auc"], self.never["auc"])

    def line(self, way: str, setting: float) -> tuple[Any, ...]:
        (row,) = (row for row in self.rows if (row["way"], row["setting"]) == (way, setting))
        forget, retain = row["numbers"]["forget"], row["numbers"]["retain"]
        return (way, forget["probability"], forget["ROUGE-L"], row["verbatim"],
                retain["probability"], retain["ROUGE-L"], row["utility"],
                self.quality(row), self.leakage(row))  # fmt: skip

    def swept(self, way: str) -> list[tuple[float, float]]:
        """Probability of what is to be forgotten, and of what is retained, of every setting."""
        found = (row["numbers"] for row in self.rows if row["way"] == way)
        return sorted((n["forget"]["probability"], n["retain"]["probability"]) for n in found)


def table(model: str, name: str) -> str:
    """One line a way that is kept."""
    kept = Kept(model, name)
    order = [(BEFORE, 0.0), *((way, one.setting) for way, one in WAYS.items()), (NEVER, 0.0)]
    found = {(row["way"], row["setting"]) for row in kept.rows}
    order = [one for one in order if one in found]
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for way, *numbers, quality, leakage in (kept.line(*one) for one in order):
        cells = [way, *(f"{number:.2f}" for number in numbers), f"{quality:.1g}", f"{leakage:+.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts() -> dict[str, str]:
    """Every table of which all runs are kept, by model and forget set."""
    every = [(model, name) for model in FILES for name in NAMES]
    return {f"{model}-{name}": table(model, name) for model, name in every if done(model, name)}


def draw() -> None:
    """What is forgotten against what is retained in a sweep, and forget quality against utility."""
    kept = Kept("small", SWEPT)
    with figures.style():
        figure = figures.new_figure(5.8, 7.0)  # to be read on a phone
        figure.patch.set_alpha(1)
        upper, lower = figure.subplots(2, 1)
        for i, way in enumerate([*WAYS, BEFORE, NEVER]):
            look = {"color": figures.series_color(i), "marker": figures.MARKERS[i], "label": way}
            if way != BEFORE:  # far to the right of all others
                upper.plot(*zip(*kept.swept(way), strict=True), markersize=7, **look)
            rows = [row for row in kept.rows if row["way"] == way]
            lower.scatter([row["utility"] for row in rows], [kept.quality(row) for row in rows],
                          **{k: v for k, v in look.items() if k != "label"})  # fmt: skip
        upper.set(xlabel="probability of what is to be forgotten (less is better)",
                 ylabel="probability of the rest (more is better)",
                 title="Before: {:.2f}, {:.2f}".format(*kept.swept(BEFORE)[0]))  # fmt: skip
        lower.axhline(0.05, color=figures.QUIET, linewidth=1, linestyle=":")
        lower.set(yscale="log", xlabel="model utility (more is better)",
                  ylabel="forget quality, p-value (more is better)")  # fmt: skip
        upper.legend(loc="best", fontsize=8)
        figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


def done(model: str, name: str) -> bool:
    """Whether all runs of a set that the table shows are kept."""
    found = {row["way"] for row in Book(FILES[model]).rows() if row["set"] == name}
    return found >= {*WAYS, BEFORE, NEVER}
