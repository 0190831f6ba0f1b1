"""The page on small problems, from the kept results of `bilevel bench textbook`."""

import json

from benchmarks import zoo
from benchmarks.harness import RESULTS
from bilevel.cli import textbook

KEPT = RESULTS / "textbook.json"

CHOICE = """\
`bl.solve(problem, x0=x0, y0=y0)` chooses by what the problem declares and by a look at its
curvature, and `result.status` says what was chosen and why: MAID for smooth losses without noise
and a free y, SOBA with steps from `bl.tune` for data in batches, and a global search for problems
with constraints, or a lower loss that is not strongly convex, of at most 40 variables. Larger ones
are refused, with the names of the methods that handle them.

The search asks the follower at many x from many starts, improves the best points as nonlinear
programs over the lower optimality conditions, and checks the follower at each point that comes
out. Where the follower has a better answer, the point is given up and the program solved again with
that answer as a cut. Both losses are followed along rays of their feasible sets: one that falls for
ever has no minimum, and the status says so (`unbounded`, or a follower without a minimum).

`result.certificate` says separately what is known of y and of x. Of y: the gap
`g(x, y) − min g(x, ·)`, *proved* where the lower problem is a convex quadratic program at x,
otherwise *searched*, from 65 starts and some thousand values. The gap is at most 1e-6 times how
much g moves with y (or times 1 + |g|, where that is less). Of x: stationary or not (whether a small
step of x lowers f, with y answering), the best of how many points, bounded or not. `certificate.ok`
asks for all of it. Where the follower has several answers that are equally good, y is the
one that the leader likes best (the *optimistic* answer), and `certificate.pessimistic` is the upper
loss at the worst of them."""

JUDGED = """\
`bilevel bench textbook --problems FILE --cache FOLDER` runs it on a file of problems (the format is
that of `bilevel.problems.textbook.load`), with one set of defaults for all. A referee that shares
only the parser of expressions with the search judges each answer. Solved: constraints hold to
1e-6, the follower's gap is at most 1e-6 (1 + |g|), and the upper loss is at most 1e-3 (1 + |best|),
or half a unit of the last printed digit, above the best known value. (The loose rule allows 1e-3
and 1e-2.) A value that is lower than the best known one by more is marked: the reference is beaten
where the gap is below 1e-8. The kept table was
made on two cores that other programs used, too, and not all programs were compiled before: its
seconds are no measure."""


ZOO = """\
`python -m benchmarks.zoo` asks `bl.solve` about sixty small followers that are flat, kinked,
unbounded, empty, tied, degenerate, badly scaled or without a minimum that is attained. Right values
come from brute force in NumPy: a grid of x and y, refined at every local minimum (*none*: there is
no solution, and a claim would be false). Solved: claimed, with a gap of at most 1e-6 of how much g
moves and an upper loss within 1e-3 (1 + |right|); or, where there is no solution, not claimed. A
claim is false where the gap is larger, the upper loss is more than ten times that above the right
one, or more than that below it. The seconds are of the processor, compiling included."""
ZOO_COLUMNS = ("follower", "right", "upper", "gap", "status", "seconds", "")


def zoo_lines() -> list[str]:
    """The section on the zoo, from its kept results."""
    rows = [zoo.Row(**row) for row in json.loads(zoo.KEPT.read_text("utf-8"))]
    lines = [
        *("## Sixty followers with known answers", "", ZOO, "", zoo.summary(rows), ""),
        *(f"| {' | '.join(ZOO_COLUMNS)} |", "|" + "---|" * len(ZOO_COLUMNS)),
    ]
    for row in rows:
        right = "none" if row.right is None else f"{row.right:.5g}"
        gap = "–" if row.right is None else f"{row.gap:.0e}"
        told = "**false claim**" if row.false else "solved" if row.solved else "**not solved**"
        outcome = row.status.split(":")[0]
        cells = (row.name, right, f"{row.upper:.5g}", gap, outcome, f"{row.processor:.0f}", told)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(generated: str) -> str:
    """The whole page."""
    kept = json.loads(KEPT.read_text("utf-8"))
    rows = [textbook.Row(**row) for row in kept["rows"]]
    told = textbook.summary(rows, kept["seconds"], kept["processor"]).splitlines()
    lines = [
        *("# Small problems without a method", "", generated, "", CHOICE, "", JUDGED, ""),
        *("![Problems solved within a time](figures/textbook.png)", ""),
        *(f"- {line}" for line in told),
        *("", f"| {' | '.join(textbook.COLUMNS)} |", "|" + "---|" * len(textbook.COLUMNS)),
        *(f"| {' | '.join(textbook.cells(row))} |" for row in rows),
        "",
        *zoo_lines(),
    ]
    return "\n".join([*lines, ""])
