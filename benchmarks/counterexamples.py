"""The talk's two counterexamples, and what each method that takes them does there.

`python -m benchmarks.counterexamples`. A linear lower level whose solution jumps, and one whose
minimum is born at a fold: four problems of one unknown x, with closed forms. Every method has one
setting for all of them. `--draw` draws the figure anew from the kept results.
"""

import functools
import json
import math
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import bilevel as bl
from benchmarks.harness import RESULTS, machine
from bilevel import methods, problems, schedules
from bilevel.methods import AbstractMethod
from bilevel.methods.base import LowerAssumption
from bilevel.problem import Batch
from bilevel.problems import Case
from bilevel.problems.branches import FOLD_JUMP
from bilevel.problems.jumps import lpjump_barrier
from bilevel.report import figures

KEPT = RESULTS / "counterexamples.json"
FIGURE = RESULTS.parent.parent / "docs" / "figures" / "counterexamples.png"
RIDGE = 0.1  # μ of the ½ μ ‖y‖² that a linear g is given where a theory wants strong convexity
WALLS = (0.1, 1e-2, 1e-3, 1e-4)  # t of the barrier

NEAR = 0.02  # f so close to the best is the answer
GAP = 0.05  # g so far above its minimum is no lower solution
FLAT = 1e-3  # ‖y − P(y − ∇g)‖ of a lower minimum, be it a local one
MOVES = 0.02  # x that went so far in the last tenth of the steps has not settled

LEFT_OUT = {
    "GDA": "is for min-max, g = −f",
    "MGD": "is for min-max, g = −f",
    "F3SA": "is F2SA where nothing is drawn at random",
    "AugmentedLagrangian": "wraps another method, for upper constraints",
    "QuadraticPenalty": "wraps another method, for upper constraints",
    "UpperBarrier": "wraps another method, for upper constraints",
}

ABOUT = """\
**A jump.** `f = y_1` and `g = x y_1 + y_2` over |y_1| ≤ 1, y_2 ≥ 0: the follower of a linear
program takes `y* = (−sign x, 0)`, so `l(x) = −sign x`. At x = 0 every y_1 is optimal: l(0) is
−1 for the optimist, the value on the talk's slide, and +1 for the pessimist. The log barrier's
`y_t = (−x/(t + √(t² + x²)), t)` gives an l_t with l_t(0) = 0 for every t and slope −1/(2t)
there: l_t tends to l wherever l is continuous, its error being O(t/|x|), and at the jump it
tends to neither value. (On the barrier slide the approximation must read
`l_t(x) = f(x, y_t(x))`, and its limits need l to be continuous at x.) A penalty
`f + (g − min g)/s` makes of the jump a ramp over [−s, 0], which has its foot at the right
place. *Tilted*, with `f = y_1 + (x + ½)²/2`, l falls to −7/8 as x → 0 from the right, a value
that only the optimist attains; the minimiser of l_t stands about √(2t) away.

**A fold.** `g = (1 − 2x) y + (3x − 2x²) y³`. Two stationary points,
`y² = (2x − 1)/(3x (3 − 2x))`, are born at x = ½ with curvature zero: at x = ½ itself y = 0 is
an inflection of `g = y³`, a minimum only where a bound makes it one. Without bounds on y, g has
no minimum for 0 < x < 3/2. On 0 ≤ y ≤ 2, y* is 0 up to x = ½ and the upper root beyond:
continuous, Hölder-½, with an infinite slope at x = ½. On −1 ≤ y ≤ 1 the least minimum is y = −1
up to x = (1 + √97)/12 ≈ 0.904, where it *jumps* to +½; y = −1 remains a local minimum. Here
`f = ½ (y − 1/√3)² + ½ (x − 1)²`, which is zero at (1, 1/√3)."""

NOT_RUN = ", ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items())
READING = f"""\
`python -m benchmarks.counterexamples`: every method that does not refuse the problem, with one
setting for all four, y started at y*(x_0). Where a theory asks for a strongly convex g and g is
linear, the method is given `g + ½ μ ‖y‖²`, μ = {RIDGE:g} (ridge); what is told is measured on the
problem itself. An end is the answer where f is within {NEAR:g} of the best l and g within {GAP:g}
of its minimum. In the figure a bar is where x was in the last tenth of the steps, and a triangle
stands for an x beyond the frame. Not run: {NOT_RUN}."""

LESSON = """\
## Why

- *Jump*: away from x = 0 l is flat, so that neither its gradient, nor differences of its
  values, nor a penalty's ramp is felt at the start. The barrier's slope, about t/(2x²), is: the
  larger t, the sooner x is across. O2NC is carried across by the small error of its penalised
  gradients, which it sums.
- *Jump, tilted*: exact penalties end at the jump; the barrier about √(2t) before it; with a
  ridge the follower turns over |x| ≤ μ, and x ends near μ; zeroth order keeps about its radius
  away. SMBG takes the gradients of the pieces, steps over the jump and ends in the other
  piece's minimum.
- *Fold*: the infinite slope is met at one point only, and all pass it.
- *Fold, jump*: what follows y from where it was stays with y = −1, which is no longer the least
  minimum beyond the jump; no method here searches for another. The lower solvers of Barrier
  (Newton's method), DSIGD and SSIGD (quadratic programs) are made for a convex g: where it is
  concave they give up with a large residual, and x stops on a wrong gradient."""


# --- problems --------------------------------------------------------------------------------


class Task(NamedTuple):
    """A problem, where to start, and what to tell apart at the end."""

    case: Case
    title: str
    x0: float  # y starts at y*(x0)
    best: float  # the optimist's least l
    at: tuple[float, float]  # where l is least: x from, to
    place: str  # what y* does at `special`
    special: float
    view: tuple[float, float]  # x of the figure

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def linear(self) -> bool:
        return self.case.lower_L == 0


def tasks() -> dict[str, Task]:
    jump, fold, view = "the jump", "the fold", (-1.0, 1.3)
    found = (
        Task(problems.lpjump(), "Jump", -0.5, -1.0, (0, math.inf), jump, 0.0, view),
        Task(problems.lpjump_q(), "Jump, tilted", 1.0, -0.875, (0, 0), jump, 0.0, view),
        Task(problems.fold(), "Fold", 0.3, 0.0, (1, 1), fold, 0.5, (0.1, 1.2)),
        Task(problems.fold_jump(), "Fold, jump", 0.5, 0.0, (1, 1), jump, FOLD_JUMP, (0.3, 1.05)),
    )
    return {task.name: task for task in found}


def _either(tilted, x, y, batch):
    """The upper loss of both jumps, so that one program serves them."""
    plain, slope = problems.lpjump().problem.upper, problems.lpjump_q().problem.upper
    return (1 - tilted) * plain(x, y, batch) + tilted * slope(x, y, batch)


def _ridged(lower, weight, x, y, batch):
    return lower(x, y, batch) + weight * jnp.sum(y * y) / 2


def posed(task: Task, ridge: float = 0.0) -> bl.Problem:
    """The problem that a method is given. A linear lower level gets a small ridge."""
    problem = task.case.problem
    if not task.linear:
        return problem
    return bl.Problem(
        Partial(_either, jnp.array(float(task.name == "lpjump_q"))),
        Partial(_ridged, problem.lower, jnp.array(ridge)),
        lower_set=problem.lower_set,
    )


# --- methods ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A method with its setting."""

    method: AbstractMethod
    steps: int
    linear: bool = False  # takes a linear program as it is

    @property
    def name(self) -> str:
        return type(self.method).__name__

    @property
    def setting(self) -> str:
        """The number that decides how near to l the method works."""
        for field in ("t", "penalty", "accuracy", "radius", "deviation"):
            if hasattr(self.method, field):
                value = getattr(self.method, field)
                shown = schedules.shown(value) if hasattr(value, "dtype") else repr(value)
                return f"{field} {shown}"
        return ""

    def ridge(self, task: Task) -> float:
        wanted = type(self.method).below is LowerAssumption.STRONGLY_CONVEX and not self.linear
        return RIDGE if task.linear and wanted else 0.0


def entries() -> list[Entry]:
    m, falling = methods, schedules.Polynomial(0.2, 0.5, 10.0)
    return [
        *(Entry(m.Barrier(t=t), 60, linear=True) for t in WALLS),
        Entry(m.BLOCC(2e-3, 0.1, 0.1, 20.0), 4000),
        Entry(m.LVHBA(2e-2, 5e-2, 2e-2, schedules.Polynomial(5.0, -0.3)), 10_000),
        Entry(m.LuMei(0.05, m.NestedSolver(5e-4, 5e-4)), 10_000),
        Entry(m.VPBGD(2e-3, 2e-3, 0.1, 20.0), 4000),
        Entry(m.KwonDL(2e-3, 0.1, 20.0), 4000),
        Entry(m.KwonSL(2e-3, 0.1, 20.0), 4000),
        Entry(m.F2BA(2e-3, 0.1, 20.0), 4000),
        Entry(m.F2SA(2e-3, 0.1, 0.1, 20.0), 4000),
        Entry(m.MEHA(2e-2, 2e-2, 5e-2), 60_000),
        Entry(m.IGFM(falling), 400),
        Entry(m.ChenLiSo(falling), 400),
        Entry(m.ZerothO2NC(1e-3, 1e-2), 1000),
        Entry(m.O2NC(1e-3, 1e-2), 1000),
        Entry(m.PIGD(falling), 400),
        Entry(m.DSIGD(0.5, max_backtracks=30), 40),
        Entry(m.SSIGD(falling), 400),
        Entry(m.DSBLO(), 1000),
        Entry(m.SMBG(0.05, 0.1), 400),
        Entry(m.BiOITD(0.05, 0.1), 400),
    ]


# --- results ---------------------------------------------------------------------------------


class Reached(NamedTuple):
    """Where a method stood in the end."""

    task: str
    method: str
    setting: str
    ridge: float
    below: str  # what its theory asks of g
    steps: int
    x: float
    y: list[float]
    upper: float  # f(x, y)
    gap: float  # g(x, y) − min g(x, ·)
    residual: float  # ‖y − P(y − ∇g(x, y))‖
    violation: float  # of the lower set
    low: float  # of x in the last tenth of the steps
    high: float


@functools.partial(jax.jit, static_argnames="steps")
def _path(problem: bl.Problem, method: AbstractMethod, state: Any, steps: int):
    def body(state, _):
        state, _ = method.step(problem, state, Batch())
        return state, state.x

    return jax.lax.scan(body, state, length=steps)


def reached(task: Task, entry: Entry) -> Reached:
    """Run it, and measure the end on the problem as it stands in `bilevel.problems`."""
    ridge, of = entry.ridge(task), task.case.problem
    problem = posed(task, ridge)
    entry.method.check(problem)
    x0 = jnp.array(task.x0, float)
    state = entry.method.init(problem, x0, task.case.y_star(x0), key=jax.random.key(1))
    state, xs = _path(problem, entry.method, state, entry.steps)
    x, y, last = state.x, state.y, xs[-(entry.steps // 10) :]
    slope = jax.grad(of.lower, argnums=1)(x, y, None)
    return Reached(
        task.name,
        entry.name,
        entry.setting,
        ridge,
        type(entry.method).below.value,
        entry.steps,
        float(x),
        np.ravel(y).tolist(),
        float(of.upper(x, y, None)),
        float(of.lower(x, y, None) - of.lower(x, task.case.y_star(x), None)),
        float(jnp.linalg.norm(jnp.ravel(y - of.lower_set.project(y - slope, x)))),
        float(of.lower_set.violation(y, x)),
        float(last.min()),
        float(last.max()),
    )


ANSWER, ELSEWHERE, UNSOLVED = "finds the answer", "ends elsewhere", "y is no lower solution"


def kind(row: Reached, task: Task) -> str:
    """One of three, by the numbers alone."""
    excess = row.upper - task.best
    finite = np.isfinite([row.x, row.upper, row.gap, *row.y]).all()
    if not finite or row.gap > GAP or row.violation > GAP or excess < -NEAR:
        return UNSOLVED
    return ANSWER if excess <= NEAR else ELSEWHERE


def verdict(row: Reached, task: Task) -> str:
    """What happened, in words made of the numbers."""
    if not np.isfinite([row.x, row.upper, row.gap, *row.y]).all():
        return "diverged"
    if row.violation > GAP:
        return f"y left its set by {row.violation:.2g}"
    if row.gap > GAP:
        local = "a lower minimum, not the least one" if row.residual < FLAT else UNSOLVED
        return f"{local}: g is {row.gap:.2g} too high"
    excess = row.upper - task.best
    if excess < -NEAR:
        return f"f is {-excess:.2g} below the best l, for y gives way by {row.gap:.2g}"
    moves = row.high - row.low > MOVES
    if kind(row, task) == ANSWER:
        off = max(task.at[0] - row.x, row.x - task.at[1], 0.0)
        return ANSWER + (f", {off:.2g} off" if off > 1e-3 else "") + (", moving" if moves else "")
    across = (row.x - task.special) * (task.x0 - task.special) < 0
    side = f"{abs(row.x - task.special):.2g} {'beyond' if across else 'before'} {task.place}"
    where = f"stays near its start, {side}" if abs(row.x - task.x0) < NEAR else f"ends {side}"
    to_and_fro = f", moving between {row.low:.2g} and {row.high:.2g}" if moves else ""
    return f"{where}{to_and_fro}: f is {excess:.2g} above the best"


# --- showing ---------------------------------------------------------------------------------


def y_wall(task: Task, x: np.ndarray, t: float) -> np.ndarray:
    """`y_t(x)`, the minimiser of `g − t Σ log(−h)`: its first entry."""
    if task.linear:
        return np.asarray(jax.vmap(lpjump_barrier, (0, None))(jnp.asarray(x), t)[:, 0])
    ends = jnp.array([-9.0, 9.0])
    lo, hi = np.asarray(task.case.problem.lower_set.project(ends))
    y = lo + (hi - lo) * (1 - np.cos(np.linspace(0, np.pi, 4003)[1:-1])) / 2
    g = _lower(task, x[:, None], y[None, :]) - t * np.log((y - lo) * (hi - y))[None, :]
    return y[g.argmin(axis=1)]


def _lower(task: Task, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(task.case.problem.lower(jnp.asarray(x), jnp.asarray(y), None))


def upper(task: Task, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f, of which only the first entry of y counts."""
    pair = np.stack([y, np.zeros_like(y)]) if task.linear else y
    return np.asarray(task.case.problem.upper(jnp.asarray(x), jnp.asarray(pair), None))


def branches(task: Task) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Lower minima as curves (x, y, whether least), cut where y* jumps."""
    lo, hi = task.view
    near = np.linspace(1e-3, 1, 400) ** 2  # dense where a branch is steep
    inside, beyond = (
        task.special - (task.special - lo) * near,
        task.special + (hi - task.special) * near,
    )
    y_star = np.vectorize(lambda x: float(np.ravel(task.case.y_star(jnp.array(x)))[0]))
    found = [(inside, y_star(inside), True), (beyond, y_star(beyond), True)]
    if task.name == "fold_jump":
        born = 0.5 + (task.special - 0.5) * near
        root = np.sqrt((2 * born - 1) / (3 * born * (3 - 2 * born)))
        found += [(born, root, False), (beyond, -np.ones_like(beyond), False)]
    return found


MARKS = {ANSWER: (2, "o"), ELSEWHERE: (1, "s"), UNSOLVED: (3, "X")}  # colour, marker


def draw(rows: list[Reached]) -> None:
    """Above, the lower solutions and the hyper-objective; below, where each method ended."""
    with figures.style():
        figure = figures.new_figure(9.6, 9.4)
        figure.patch.set_alpha(1)
        grid = figure.subplots(3, 4, height_ratios=(2, 2, 5), sharex="col")
        for column, task in zip(grid.T, tasks().values(), strict=True):
            _draw_level(column[0], task, lambda task, x, y: y)
            _draw_level(column[1], task, upper)
            _draw_ends(column[2], task, [row for row in rows if row.task == task.name])
            column[0].set_title(task.title)
            column[2].set_xlabel("x")
            column[2].set_xlim(task.view)
        for axes, label in zip(grid[:, 0], ("y (first entry)", "f(x, y)", ""), strict=True):
            axes.set_ylabel(label)
        for axes in grid[2, 1:]:
            axes.tick_params(labelleft=False)
        curves, names = grid[0, 3].get_legend_handles_labels()
        figure.legend(curves, names, loc="outside upper center", ncols=len(names))
        ends = {of: _mark(grid[2, 3], of, [math.nan], [math.nan]) for of in MARKS}
        figure.legend(ends.values(), ends, loc="outside lower center", ncols=len(ends))
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, dpi=150, metadata={"Software": None})


def _draw_level(axes, task: Task, of) -> None:
    """`of(x, y)` along the lower minima, and along the barrier's."""
    for i, t in enumerate(WALLS[:3]):
        x, color = np.linspace(*task.view, 401), figures.series_color((0, 4, 6)[i])
        y = y_wall(task, x, t)
        leaps = np.abs(np.diff(y, prepend=y[0])) > (math.inf if task.linear else 0.3)
        values = np.where(leaps, math.nan, of(task, x, y))
        axes.plot(x, values, color=color, lw=1.1, label=f"barrier, t = {t:g}", zorder=3)
    for x, y, least in branches(task):
        line = {"lw": 2.2} if least else {"lw": 1.4, "ls": (0, (3, 1.5))}
        name = "least lower minimum" if least else "a local one"
        axes.plot(x, of(task, x, y), color=figures.INK, label=_once(axes, name), **line)


def _once(axes, name: str) -> str:
    return "" if name in axes.get_legend_handles_labels()[1] else name


def _draw_ends(axes, task: Task, rows: list[Reached]) -> None:
    """A line a method: where x was in the last tenth of the steps, and where it stood at last."""
    names = [label(entry) for entry in entries()]
    at = {(row.method, row.setting): row for row in rows}
    lo, hi = task.view
    for height, entry in enumerate(entries()):
        row = at.get((entry.name, entry.setting))
        if row is None:
            axes.text((lo + hi) / 2, height, "refuses", ha="center", va="center", fontsize=7.5,
                      color=figures.QUIET)  # fmt: skip
            continue
        of = kind(row, task)
        axes.plot([row.low, row.high], [height] * 2, color=figures.series_color(MARKS[of][0]))
        if lo <= row.x <= hi:
            _mark(axes, of, [row.x], [height])
        else:
            _mark(axes, of, [hi if row.x > hi else lo], [height], ">" if row.x > hi else "<")
    for x, name in ((task.x0, "start"), (task.special, task.place)):
        axes.vlines(x, -0.7, len(names) - 0.6, figures.QUIET, (0, (4, 3)), lw=1, zorder=1.5)
        axes.annotate(
            name.removeprefix("the "), (x, len(names) - 0.5), ha="center", va="top", fontsize=8,
            color=figures.QUIET, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) + 0.3, -0.7)


def label(entry: Entry) -> str:
    return f"{entry.name}, {entry.setting}" if entry.name == "Barrier" else entry.name


def _mark(axes, of: str, x, y, marker: str | None = None):
    color, usual = MARKS[of]
    how = {"clip_on": False, "ms": 5.5, "mec": "white", "mew": 0.6, "zorder": 4}
    return axes.plot(x, y, marker or usual, color=figures.series_color(color), **how)[0]


def cells(row: Reached, task: Task) -> tuple[str, ...]:
    """The row as words, for a table with the columns HEAD."""
    y = ", ".join(f"{entry:.4f}" for entry in row.y)
    gap = f"{max(row.gap, 0):.1e}" if row.gap > 1e-12 else "0"
    numbers = f"{row.x:.4f}", y, f"{row.upper:.4f}", gap
    setting = ", ".join(filter(None, [row.setting, f"ridge {row.ridge:g}" if row.ridge else ""]))
    return row.method, setting, *numbers, verdict(row, task)


HEAD = ("method", "setting", "x", "y", "f(x, y)", "lower gap", "what happened")


def told(rows: list[Reached], task: Task) -> str:
    """How many ended how."""
    kinds = [kind(row, task) for row in rows if row.task == task.name]
    counts = (f"{of}: {kinds.count(of)}" for of in MARKS)
    return f"Of {len(kinds)} runs: " + "; ".join(counts) + "."


def refusals(task: Task) -> list[str]:
    """Methods with an entry that do not take the problem."""
    names = {e.name for e in entries() if e.method.unsupported(task.case.problem)}
    return sorted(names)


# --- keeping ---------------------------------------------------------------------------------


def keep(rows: list[Reached]) -> None:
    record = {"machine": machine(), "rows": [_rounded(row) for row in rows]}
    KEPT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def kept() -> list[Reached]:
    """The rows of the last run."""
    return [Reached(**row) for row in json.loads(KEPT.read_text())["rows"]]


def _rounded(row: Reached) -> dict[str, Any]:
    def six(value):
        if isinstance(value, list):
            return [six(v) for v in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {name: six(value) for name, value in row._asdict().items()}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    if "--draw" in sys.argv:
        draw(kept())
        return
    begun, rows = time.perf_counter(), []
    for task in tasks().values():
        print(f"\n{task.name}: {task.title.lower()}, from x = {task.x0}", flush=True)
        for entry in entries():
            if entry.method.unsupported(task.case.problem):
                continue
            rows.append(reached(task, entry))
            print("  " + " | ".join(cells(rows[-1], task)), flush=True)
    keep(rows)
    draw(rows)
    print(f"\n{time.perf_counter() - begun:.0f} s; kept in {KEPT} and {FIGURE}")


if __name__ == "__main__":
    main()
