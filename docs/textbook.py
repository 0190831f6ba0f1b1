"""The page on small problems, from the kept results of `bilevel bench textbook`."""

import json

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
that answer as a cut. `result.certificate` holds the follower's gap `g(x, y) − min g(x, ·)` from 65
starts: a search, and not a proof."""

JUDGED = """\
`bilevel bench textbook --problems FILE --cache FOLDER` runs it on a file of problems (the format is
that of `bilevel.problems.textbook.load`), with one set of defaults for all. A referee that shares
only the parser of expressions with the search judges each answer. Solved: constraints hold to
1e-6, the follower's gap is at most 1e-3 (1 + |g|), and the upper loss is at most 1e-2 (1 + |best|)
above the best known value. Seconds are those of a machine of two cores, with the
programs compiled before (`--cache`)."""


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
    ]
    return "\n".join([*lines, ""])
