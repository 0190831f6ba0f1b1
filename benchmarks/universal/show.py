"""The table and the figure of the kept runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.universal.case import Kind
from benchmarks.universal.runs import FAILED, FAMILIES, REFUSED, Run
from bilevel.report import figures

FIGURE = Path(__file__).parent.parent.parent / "docs" / "figures" / "universal.png"
MARKS = {
    Kind.SOLVED.value: "solved",
    Kind.WORSE.value: "**worse**",
    Kind.NOT_OPTIMAL.value: "**wrong y**",
    Kind.INFEASIBLE.value: "**infeasible**",
    REFUSED: "**refused**",
    FAILED: "**error**",
}
OURS, OTHERS = "bl.solve", ("SLSQP", "genetic")


def table(rows: Sequence[Run]) -> str:
    """A line a family, a cell an instance: the verdict and seconds of the processor."""
    sizes = sorted({row.n for row in rows if row.who == OURS})
    columns = [(OURS, n) for n in sizes]
    columns += [(who, n) for who in OTHERS for n in sizes if any(_is(r, who, n) for r in rows)]
    head = ["family", "declares", *(f"{_short(who)} n = {n}" for who, n in columns)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        cells = [_cell([r for r in own if _is(r, *column)]) for column in columns]
        lines.append(f"| {family} | {own[0].structure} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *summary(rows)])


def summary(rows: Sequence[Run]) -> list[str]:
    """How many each solved, refused, and claimed falsely."""
    told = []
    for who in (OURS, *OTHERS):
        own = [row for row in rows if row.who == who]
        if own:
            false = [f"{row.family} (n = {row.n})" for row in own if row.false_claim]
            refused = sum(row.kind == REFUSED for row in own)
            told.append(
                f"- `{who}`: {sum(row.solved for row in own)} of {len(own)} solved, {refused} "
                f"refused; claimed falsely: {', '.join(false) or 'none'}."
            )
    left = [make.__name__ for make in FAMILIES if make.__name__ not in {row.name for row in rows}]
    return [*told, *([f"- Not run yet: {', '.join(left)}."] if left else [])]


def _is(row: Run, who: str, n: int) -> bool:
    return row.who == who and row.n == n


def _short(who: str) -> str:
    return f"`{who}`" if who == OURS else who


def _cell(found: Sequence[Run]) -> str:
    if not found:
        return "not run"
    row = found[0]
    if row.kind == REFUSED:
        return MARKS[row.kind]
    lie = ", *claimed*" if row.false_claim else ""
    return f"{MARKS[row.kind]}{lie}, {row.seconds:.0f} s"


def draw(rows: Sequence[Run]) -> None:
    """Seconds against size, a panel a way: a dot an instance, full where it was solved."""
    ways = [who for who in (OURS, *OTHERS) if any(row.who == who for row in rows)]
    names = list(dict.fromkeys(row.family for row in rows))
    with figures.style():
        figure = figures.new_figure(10, 0.34 * len(names) + 1.2)
        grid = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
        sizes = sorted({row.n for row in rows})
        for axes, who in zip(grid, ways, strict=True):
            for i, n in enumerate(sizes):
                for solved in (True, False):
                    some = [r for r in rows if _is(r, who, n) and r.solved is solved]
                    colour = figures.series_color(i)
                    axes.scatter(
                        [max(r.seconds, 0.1) for r in some],
                        [names.index(r.family) for r in some],
                        s=20 + 12 * i,
                        color=colour if solved else "none",
                        edgecolors=colour,
                        label=f"n = {n}" if solved else None,
                    )
            axes.set_xscale("log")
            axes.set_title(who)
            axes.set_xlabel("seconds of the processor")
        grid[0].set_yticks(np.arange(len(names)), names)
        grid[0].invert_yaxis()
        grid[0].legend(loc="lower right")
        figure.patch.set_alpha(1)
        figure.savefig(FIGURE, dpi=120, metadata={"Software": None})
