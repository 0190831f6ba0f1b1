"""The table and the figure of the kept runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.universal.case import Kind
from benchmarks.universal.runs import FAILED, FAMILIES, REFUSED, RIVALS, SINGLE, Run
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
OURS = "bl.solve"
PERSON = tuple(RIVALS)  # what a person would use
WITHIN = 2.0  # of the seconds of the best single method in hindsight


class Against(NamedTuple):
    """An instance beside the single method that solves it fastest, which is known afterwards."""

    ours: Run
    best: Run

    @property
    def ratio(self) -> float:
        return self.ours.seconds / self.best.seconds


def against(rows: Sequence[Run]) -> list[Against]:
    """All instances that some single method solves."""
    found = []
    for ours in (row for row in rows if row.who == OURS):
        singles = [r for r in rows if r.name == ours.name and r.n == ours.n and _is_single(r)]
        solved = [row for row in singles if row.solved]
        if solved:
            found.append(Against(ours, min(solved, key=lambda row: row.seconds)))
    return found


def table(rows: Sequence[Run]) -> str:
    """A line a family, a cell an instance: ours, the best single method's, a person's tools'."""
    sizes = sorted({row.n for row in rows if row.who == OURS})
    compared = {(pair.ours.name, pair.ours.n): pair for pair in against(rows)}

    def ours(own: Sequence[Run], n: int) -> str:
        return _cell([row for row in own if row.who == OURS and row.n == n])

    def single(own: Sequence[Run], n: int) -> str:
        pair = compared.get((own[0].name, n))
        if pair is None:
            return "none solves it" if any(_is_single(r) and r.n == n for r in own) else "not run"
        times = f" ({pair.ratio:.1f} times)" if pair.ours.solved else ""
        return f"{pair.best.who.split(': ')[-1]}, {pair.best.seconds:.0f} s{times}"

    tables = [
        _lines(rows, {"declares": lambda own: own[0].structure}, sizes, ours, f"`{OURS}`"),
        "",
        "The best single method in hindsight, and how many times as long `bl.solve` took:",
        "",
        _lines(rows, {}, sizes, single, "single method"),
    ]
    tools = [(who, n) for who in PERSON for n in sizes if any(_is(r, who, n) for r in rows)]
    if tools:
        head = {
            f"{who} n = {n}": lambda own, who=who, n=n: _cell([r for r in own if _is(r, who, n)])
            for who, n in tools
        }
        tables += ["", "What a person would use:", "", _lines(rows, head, (), ours, "")]
    return "\n".join([*tables, "", *summary(rows)])


def _lines(rows: Sequence[Run], first, sizes, cell, who: str) -> str:
    head = ["family", *first, *(f"{who} n = {n}" for n in sizes)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        cells = [*(told(own) for told in first.values()), *(cell(own, n) for n in sizes)]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Run]) -> list[str]:
    """How many each solved, refused, and claimed falsely; how long beside the best in hindsight."""
    told = []
    for who in (OURS, *PERSON):
        own = [row for row in rows if row.who == who]
        if own:
            false = [f"{row.family} (n = {row.n})" for row in own if row.false_claim]
            refused = sum(row.kind == REFUSED for row in own)
            told.append(
                f"- {_short(who)}: {sum(row.solved for row in own)} of {len(own)} solved, "
                f"{refused} refused; claimed falsely: {', '.join(false) or 'none'}."
            )
    pairs = against(rows)
    if pairs:
        near = [pair for pair in pairs if pair.ours.solved and pair.ratio <= WITHIN]
        lost = [f"{p.ours.family} (n = {p.ours.n})" for p in pairs if not p.ours.solved]
        told.append(
            f"- Within {WITHIN:g} times the seconds of the best single method: {len(near)} of the "
            f"{len(pairs)} instances that one solves; solved by a single method and not by "
            f"`{OURS}`: {', '.join(lost) or 'none'}."
        )
    left = [make.__name__ for make in FAMILIES if make.__name__ not in {row.name for row in rows}]
    return [*told, *([f"- Not run yet: {', '.join(left)}."] if left else [])]


def _is(row: Run, who: str, n: int) -> bool:
    return row.who == who and row.n == n


def _is_single(row: Run) -> bool:
    return row.who.startswith(SINGLE)


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
    """The share that each way solves, and our seconds beside the best single method's."""
    names = list(dict.fromkeys(row.family for row in rows))
    sizes = sorted({row.n for row in rows})
    with figures.style():
        figure = figures.new_figure(10, 0.3 * len(names) + 1.4)
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        _draw_shares(left, rows, sizes)
        _draw_ratios(right, rows, sizes, names)
        figure.patch.set_alpha(1)
        figure.savefig(FIGURE, dpi=120, metadata={"Software": None})


def _draw_shares(axes, rows: Sequence[Run], sizes: Sequence[int]) -> None:
    """A group of bars a way, a bar a size; a single method counts where any solves the instance."""
    run = [who for who in PERSON if any(row.who == who for row in rows)]
    ways = [OURS, "best single\nin hindsight", *run]
    for i, n in enumerate(sizes):
        for j, who in enumerate(ways):
            if j == 1:
                own = {r.name: False for r in rows if _is_single(r) and r.n == n}
                own |= {r.name: True for r in rows if _is_single(r) and r.n == n and r.solved}
            else:
                own = {r.name: r.solved for r in rows if _is(r, who, n)}
            if not own:
                continue
            at, share = j + 0.26 * (i - (len(sizes) - 1) / 2), sum(own.values()) / len(own)
            label = f"n = {n}" if j == 0 else None
            axes.barh(at, share, height=0.24, color=figures.series_color(i), label=label)
            axes.text(share + 0.01, at, f"{sum(own.values())}/{len(own)}", va="center", size=8)
    axes.set_yticks(np.arange(len(ways)), ways)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.legend(loc="lower right")
    axes.set_xlabel("share of instances solved")


def _draw_ratios(axes, rows: Sequence[Run], sizes: Sequence[int], names: Sequence[str]) -> None:
    """A dot an instance; empty where `bl.solve` did not solve it."""
    for i, n in enumerate(sizes):
        for solved in (True, False):
            some = [p for p in against(rows) if p.ours.n == n and p.ours.solved is solved]
            axes.scatter(
                [pair.ratio for pair in some],
                [names.index(pair.ours.family) for pair in some],
                s=20 + 14 * i,
                color=figures.series_color(i) if solved else "none",
                edgecolors=figures.series_color(i),
            )
    axes.axvline(WITHIN, linestyle="--", linewidth=1, color="grey")
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("seconds of bl.solve / seconds of the best single method")
