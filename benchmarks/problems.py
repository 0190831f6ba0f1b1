"""Every method on the public benchmark's kind of problems, at one budget of gradients.

`python -m benchmarks.problems`; with `--draw`, the figures anew from what is kept.
Two problems on real data: a penalty for every feature of a logistic regression, and the cleaning
of wrong labels. Each method starts from the schedules of its theory, scaled to the problem; a race
over multiples of its steps, side by side in one compilation, finds those that suit; with these it
runs again on three draws of the data. A run is judged at every look by the hyper-objective
`f(x, y*(x))` and by the test loss of `y*(x)`, with the lower problem solved anew.

Gradients are counted for single rows: a mini-batch of 100 costs a hundred, all data their number.
A Hessian or cross product counts twice, a dense matrix twice as often as y has entries.
"""

import dataclasses
import datetime
import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from benchmarks import flights, pictures
from benchmarks.harness import RESULTS, machine
from bilevel import certificates, lower, methods, trees
from bilevel.apps import cleaning
from bilevel.data import Data
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem
from bilevel.schedules import PolynomialCount
from bilevel.selection.ahead import measured_ahead
from bilevel.selection.tune import gentle, multiplied

X_FACTORS = tuple(0.1 * 5.0**i for i in range(6))  # 0.1 to 312
LOWER_FACTORS = (0.3, 1.0)
SEEDS = 3
LOOKS = 12  # at a run, at budgets that grow by the same factor
FIRST_LOOK = 1e-3  # of the budget
CHECKS = 5  # of a race; the worst of its last two looks counts, so a growing oscillation loses
SHORT = 10  # most lower steps and terms of a series in one step, as in the public benchmark
MOST_ENTRIES = 200  # of y, for methods that hold matrices with a row for each
REACHED = 0.05  # of the gap between the start and the best of all methods

FULL = {"BA", "BOME", "BiOAID", "BiOITD", "MAID"}  # made for exact gradients: all data a step


KEPT = RESULTS / "problems.json"


class Task(NamedTuple):
    """A problem, its rows, and how it is judged."""

    name: str
    problem: Problem
    x0: Any
    y0: Any
    rows: Batch  # all of both levels
    test: Any  # rows that no method sees
    accuracy: Callable  # (y, rows) -> share
    batch_size: int
    solver: lower.AbstractLowerSolver  # of the lower problem, to judge by

    @property
    def sizes(self) -> Batch:
        return Batch(*(len(jax.tree.leaves(level)[0]) for level in self.rows[:2]))


# One object for all seeds: another is new code to the compiler.
_flights, _cleaning = functools.cache(flights.problem), functools.cache(cleaning.problem)


def late_flights(seed: int = 0) -> Task:
    """Which of 43 features matter: 30,000 flights to train, 10,000 each to choose and to test."""
    train, validation, test = flights.split(seed=seed)
    d = train.features.shape[1]

    def accuracy(y, rows):
        return jnp.mean((rows.features @ y > 0) == (rows.late > 0))

    solver = lower.NewtonCG(tol=1e-5, max_steps=400)
    return Task(
        "late flights", _flights(), jnp.zeros(d), jnp.zeros(d), Batch(validation, train),
        test, accuracy, 100, solver,
    )  # fmt: skip


def wrong_labels(seed: int = 0) -> Task:
    """Handwritten digits, half of them with wrong labels: a weight for each of 800."""
    task = cleaning.digits(seed=seed)
    x0, y0 = cleaning.start(task)
    train = jnp.arange(len(task.train.labels)), task.train
    solver = lower.NewtonCG(tol=1e-5, max_steps=400)
    return Task(
        "wrong labels", _cleaning(), x0, y0, Batch(task.validation, train),
        task.test, cleaning.accuracy, 50, solver,
    )  # fmt: skip


class Part(NamedTuple):
    """A task at each seed, and what a run on it may cost."""

    task: Callable[[int], Task]
    budget: float  # gradients of single rows


PARTS = (Part(late_flights, 6e6), Part(wrong_labels, 3e6))


# --- entering a method --------------------------------------------------------------------


class Entrant(NamedTuple):
    """A method with the schedules of its theory, and what it draws from."""

    method: AbstractMethod
    data: Callable[[Task], Data]
    price: float  # of the first step, in gradients of single rows
    rows: Batch  # of a batch

    def costs(self, steps: int) -> np.ndarray:
        """Gradients after 1, 2, ..., `steps` steps."""
        each = np.full(steps, self.price)
        if isinstance(growth := getattr(self.method, "lower_steps", None), PolynomialCount):
            taken = np.ceil((np.arange(steps) + 1.0) ** growth.power - 1e-4)
            each += self.rows.lower * (np.minimum(taken, growth.most) - 1)
        return np.cumsum(each)

    def steps(self, budget: float) -> int:
        """How many steps a budget holds, one at least."""
        costs = self.costs(int(budget / self.price) + 1)
        return max(1, int(np.searchsorted(costs, budget, "right")))


class NotApplicable(Exception):
    """A method that makes no sense on a task."""


def constants(task: Task) -> certificates.Probe:
    """What the theory's steps are made of, as in `bl.tune`."""
    y = task.solver.solve(task.problem, task.x0, task.y0, task.rows.lower).y
    at, all_rows, key = (task.problem, task.x0, y), Batch(*task.rows[:2]), jax.random.key(0)
    look = certificates.probe(*at, all_rows)
    feed = stochastic(task).feed(key, Draws(1, 16))
    suited = gentle(look, *at, feed.batch(jnp.int32(0)).lower.stack(16), key)
    return measured_ahead(suited, *at, all_rows, key)


def stochastic(task: Task, order: str = "epochs") -> Data:
    return Data(*task.rows[:2], batch_size=task.batch_size, order=order)


def full(task: Task) -> Data:
    return Data(*task.rows[:2])


def entrant(kind: type[AbstractMethod], task: Task, known: certificates.Probe) -> Entrant:
    """The method of its theory, with the data it is made for.

    Raises:
        NotApplicable: it holds matrices or a linear response, and x and y are large.
    """
    name, options, data = kind.__name__, {}, stochastic
    parts = Batch(*(size // task.batch_size for size in task.sizes[:2]))
    size = trees.size(task.y0)
    if name == "SABA":
        options = {"upper_slots": parts.upper, "lower_slots": parts.lower}
        data = functools.partial(stochastic, order="partition")
    if name == "SRBA":
        options = {"restart": parts.lower}
    if name in FULL:
        data = full
    method = shortened(kind.theory(known, **options))
    if name == "MAID":  # measures its constants at the iterates: those at x0 hold there only
        method = dataclasses.replace(method, mu=None, cross=None)
    price = method.price(task.problem)
    if name == "MAID":  # its loops end when they may; `spent` counts them, this is what measures
        price = Price(upper_grad=4, hvp=4, cross=2 / 3, cross_transposed=2 / 3)
    if size > MOST_ENTRIES and (price.dense_hessian or name == "STN"):
        raise NotApplicable(f"y is too large for matrices ({size} entries)")
    rows = task.sizes if name in FULL else Batch(task.batch_size, task.batch_size)
    return Entrant(method, data, gradients(price, rows, size), rows)


def shortened(method: AbstractMethod) -> AbstractMethod:
    """No more than `SHORT` lower steps or terms of a series: cheap steps, and many of them."""
    changed: dict[str, Any] = {}
    if isinstance(steps := getattr(method, "lower_steps", None), int):
        changed["lower_steps"] = min(steps, SHORT)
    if (linear := getattr(method, "linear", None)) is not None:
        field = next((f for f in ("steps", "terms") if hasattr(linear, f)), None)
        if field is not None:
            shorter = dataclasses.replace(linear, **{field: min(getattr(linear, field), SHORT)})
            changed["linear"] = shorter
    return dataclasses.replace(method, **changed) if changed else method


def gradients(price: Price, rows: Batch, lower_size: int) -> float:
    """The price of a step in gradients of single rows, where the levels' batches differ."""

    def of(level: str) -> float:
        calls = price._asdict()
        chosen = {n: c for n, c in calls.items() if n.startswith("upper") == (level == "upper")}
        return Price(**chosen).gradients(lower_size)

    return of("upper") * rows.upper + of("lower") * rows.lower


def spent(entrant: Entrant, state: Any) -> float:
    """Gradients up to a state; what MAID's loops took besides, it has counted.

    MAID measures its constants by power steps, two a step and six on each norm at first; a product
    of third order counts as two Hessian products and two upper gradients.
    """
    known = float(entrant.costs(int(state.k))[-1])
    if not hasattr(state, "cg_steps"):
        return known
    upper, lower = entrant.rows[:2]
    known += 36 * upper + 96 * lower  # the first power steps
    known += int(state.gradients) * (upper + 5 * lower)  # a gradient of each level, two products
    return known + 2 * lower * int(state.lower_steps + state.cg_steps)


# --- judging ------------------------------------------------------------------------------


class Level(NamedTuple):
    """How good a run is at one look."""

    value: Any  # f(x, y*(x)), on all validation rows
    test: Any  # the same on the test rows
    accuracy: Any  # of y*(x) on the test rows


@eqx.filter_jit
def levels(task: Task, points: Any) -> Level:
    """Of points (x, y) on a leading axis; y is where the solver starts."""

    def level(point):
        x, y = point
        y = task.solver.solve(task.problem, x, y, task.rows.lower).y
        value, test = (task.problem.upper(x, y, rows) for rows in (task.rows.upper, task.test))
        return Level(value, test, task.accuracy(y, task.test))

    return jax.vmap(level)(points)


# --- racing -------------------------------------------------------------------------------


class Winner(NamedTuple):
    """A setting raced: multiples of the theory's steps on x, and on all the rest."""

    x_factor: float
    lower_factor: float
    score: float  # the worst of its last two looks


def race(
    entrant: Entrant,
    task: Task,
    budget: float,
    x_factors: tuple[float, ...] = X_FACTORS,
    lower_factors: tuple[float, ...] = LOWER_FACTORS,
) -> Winner | None:
    """The multiples with the lowest hyper-objective at the end of the budget.

    Where the best x factor is the largest or smallest tried, as many beyond it are tried once.
    Where the next larger one diverged, half the best is the winner: as in `bl.tune`.
    """
    if not hasattr(entrant.method, "x_update"):
        return None
    lanes = run_trials(entrant, task, budget, x_factors, lower_factors)
    best = min(lanes, key=lambda lane: lane.score)
    if len(x_factors) > 1 and best.x_factor in (x_factors[0], x_factors[-1]):
        ratio = x_factors[1] / x_factors[0]
        ratio = 1 / ratio if best.x_factor == x_factors[0] else ratio
        beyond = tuple(best.x_factor * ratio**i for i in range(1, len(x_factors) + 1))
        lanes += run_trials(entrant, task, budget, beyond, lower_factors)
        best = min(lanes, key=lambda lane: lane.score)
    beside = [lane for lane in lanes if lane.lower_factor == best.lower_factor]
    larger = [lane for lane in beside if lane.x_factor > best.x_factor]
    next_one = min(larger, key=lambda lane: lane.x_factor, default=best)
    if math.isfinite(next_one.score):
        return best
    return best._replace(x_factor=best.x_factor / 2)


def run_trials(entrant, task, budget, x_factors, lower_factors) -> list[Winner]:
    """All settings of a grid; one that diverges scores infinity."""
    lanes = np.array([(p, q) for p in x_factors for q in lower_factors])
    key = jax.random.key(0)
    feed = entrant.data(task).feed(key, entrant.method.draws(task.problem))
    state = entrant.method.init(task.problem, task.x0, task.y0, key=key)
    laps = min(CHECKS, entrant.steps(budget))
    steps = -(-entrant.steps(budget) // laps)
    given = task.problem, entrant.method, feed, state
    points = _late_points(*given, jnp.asarray(lanes), steps, laps)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points)
    scores = np.asarray(levels(task, flat).value).reshape(len(lanes), -1).max(axis=1)
    scores = np.where(np.isfinite(scores), scores, np.inf)
    return [Winner(float(p), float(q), float(s)) for (p, q), s in zip(lanes, scores, strict=True)]


@eqx.filter_jit
def _late_points(problem, method, feed, state, lanes, steps: int, laps: int):
    """(x, y) of every lane after its last two laps."""

    def lane(factors):
        moved = multiplied(method, factors[0], factors[1])

        def lap(state, _):
            state, _ = bl.run(problem, moved, state, data=feed, steps=steps)
            return state, (state.x, state.y)

        return jax.tree.map(lambda leaf: leaf[-2:], jax.lax.scan(lap, state, length=laps)[1])

    return jax.vmap(lane)(lanes)


# --- running ------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One run, look by look."""

    gradients: list[float]
    seconds: list[float]
    value: list[float]
    test: list[float]
    accuracy: list[float]


def raced(entrant: Entrant, winner: Winner | None) -> Entrant:
    """The method with the steps that won."""
    if winner is None:
        return entrant
    factors = jnp.asarray(winner.x_factor), jnp.asarray(winner.lower_factor)
    return entrant._replace(method=multiplied(entrant.method, *factors))


def run(entrant: Entrant, tasks: list[Task], budget: float) -> list[Curve]:
    """A run on each of the tasks; seconds are of the compiled steps alone."""
    method = entrant.method
    shares = np.geomspace(FIRST_LOOK, 1, LOOKS)
    looks = np.unique([entrant.steps(share * budget) for share in shares])
    advance, curves = None, []
    for seed, task in enumerate(tasks):
        key = jax.random.key(seed)
        feed = entrant.data(task).feed(key, method.draws(task.problem))
        state = method.init(task.problem, task.x0, task.y0, key=key)
        given = task.problem, method, feed, state
        if advance is None:
            advance = _advance.lower(*given, 1).compile()
        found, seconds, costs = [(state.x, state.y)], [0.0], [0.0]
        for steps in np.diff(looks, prepend=0):
            begun = time.perf_counter()
            state = jax.block_until_ready(advance(*given[:3], state, int(steps)))
            took, cost = time.perf_counter() - begun, spent(entrant, state)
            if cost > 1.1 * budget and len(found) > 1:
                break
            seconds.append(seconds[-1] + took)
            costs.append(cost)
            found.append((state.x, state.y))
        last = len(found)
        found += [found[-1]] * (LOOKS + 1 - last)  # one shape for all methods
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        judged = [np.asarray(column)[:last].tolist() for column in levels(task, points)]
        curves.append(Curve(costs, seconds, *judged))
    return curves


@jax.jit
def _advance(problem, method, feed, state, steps):
    def body(_, state):
        return method.step(problem, state, feed.batch(state.k))[0]

    return jax.lax.fori_loop(0, steps, body, state)


# --- the whole part -----------------------------------------------------------------------


class Outcome(NamedTuple):
    """One method on one problem."""

    task: str
    name: str
    winner: Winner | None  # nothing to race where a method finds its own steps
    curves: list[Curve]  # one a seed
    took: float  # seconds, with compilation
    note: str = ""  # why there are no curves


Found = dict[str, list[Outcome]]  # of each task


def outcomes(
    part: Part,
    kinds: list[type[AbstractMethod]],
    *,
    seeds: int = SEEDS,
    told: Callable[[str], None] = print,
    **factors: tuple[float, ...],
) -> list[Outcome]:
    """Race and run every method; one that fails says why, and does not stop the others."""
    tasks = [part.task(seed) for seed in range(seeds)]
    known, found = constants(tasks[0]), []
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        begun, name = time.perf_counter(), kind.__name__
        winner, curves, note = None, [], ""
        try:
            entered = entrant(kind, tasks[0], known)
            winner = race(entered, tasks[0], part.budget, **factors)
            curves = run(raced(entered, winner), tasks, part.budget)
        except NotApplicable as reason:
            note = str(reason)
        except Exception as error:  # a defect of one method is a line of the table
            note = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        took = time.perf_counter() - begun
        found.append(Outcome(tasks[0].name, name, winner, curves, took, note))
        told(f"{tasks[0].name}, {name}: {took:.0f} s {note}".rstrip())
    return found


class Line(NamedTuple):
    """One line of the table: the mean over seeds at the end, medians of what it took."""

    task: str
    name: str
    x_factor: float | None
    lower_factor: float | None
    value: float | None
    test: float | None
    accuracy: float | None
    gradients: float | None  # to reach the target; `None` where most seeds do not
    seconds: float | None
    note: str


def lines(found: list[Outcome]) -> list[Line]:
    """The table of one problem, the best first."""
    costs, times = (reached(found, measure) for measure in ("gradients", "seconds"))
    rows = []
    for outcome in found:
        ends = [[c.value[-1], c.test[-1], c.accuracy[-1]] for c in outcome.curves]
        sound = [end for end in ends if np.isfinite(end).all()]
        value, test, accuracy = np.mean(sound, axis=0).tolist() if sound else [None] * 3
        cost, seconds = (_finite(np.median(of[outcome.name])) for of in (costs, times))
        p, q = outcome.winner[:2] if outcome.winner else (None, None)
        lost = f"diverged on {len(ends) - len(sound)} of {len(ends)} seeds"
        note = outcome.note or (lost if len(sound) < len(ends) else "")
        made = Line(outcome.task, outcome.name, p, q, value, test, accuracy, cost, seconds, note)
        rows.append(made)
    return sorted(rows, key=lambda r: (r.gradients or math.inf, r.value or math.inf, r.name))


def reached(found: list[Outcome], measure: str) -> dict[str, np.ndarray]:
    """What each method and seed took until the hyper-objective was near the best of all.

    That is, below `best + REACHED (start − best)`; between two looks the logarithm is
    interpolated. Infinite where it never was, or where the method did not run.
    """
    seeds = max(len(outcome.curves) for outcome in found)
    table = {outcome.name: np.full(seeds, np.inf) for outcome in found}
    for seed in range(seeds):
        curves = {o.name: o.curves[seed] for o in found if len(o.curves) > seed}
        start = next(iter(curves.values())).value[0]
        best = min(np.nanmin(curve.value) for curve in curves.values())
        for name, curve in curves.items():
            target = best + REACHED * (start - best)
            table[name][seed] = _crossing(getattr(curve, measure), curve.value, target)
    return table


def _crossing(costs: list[float], values: list[float], target: float) -> float:
    below = np.flatnonzero(np.asarray(values) <= target)
    if not len(below):
        return math.inf
    i = int(below[0])
    if i < 2:  # the first look; before it nothing is known
        return costs[i]
    share = (values[i - 1] - target) / (values[i - 1] - values[i])
    return float(np.exp(np.interp(share, (0, 1), np.log(costs[i - 1 : i + 1]))))


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def table(rows: list[Line]) -> str:
    head = (
        f"{'method':<10}{'x factor':>9}{'y factor':>9}{'f(x, y*)':>10}{'test loss':>11}"
        f"{'accuracy':>10}{'gradients':>11}{'seconds':>9}"
    )

    def cells(row: Line) -> str:
        numbers = (
            (row.x_factor, 9, "g"), (row.lower_factor, 9, "g"), (row.value, 10, ".4f"),
            (row.test, 11, ".4f"), (row.accuracy, 10, ".3f"), (row.gradients, 11, ".2g"),
            (row.seconds, 9, ".2g"),
        )  # fmt: skip
        shown = ("–".rjust(w) if n is None else format(n, f"{w}{kind}") for n, w, kind in numbers)
        return f"{row.name:<10}{''.join(shown)}  {row.note}".rstrip()

    return "\n".join([head, "-" * len(head), *map(cells, rows)])


READING = (
    "x and y factor: of the theory's steps, best of a race. f(x, y*): the hyper-objective at the "
    f"end of the budget, mean over {SEEDS} seeds without those that diverged; likewise test loss "
    "and accuracy of y*(x). Gradients (of single rows) and seconds: median over all seeds until "
    f"f(x, y*) is within {REACHED:.0%} of the gap between the start and the best of all methods."
)


def keep(found: Found) -> None:
    record = {
        "part": "problems",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "budgets": {name: part.budget for name, part in zip(found, PARTS, strict=True)},
        "reading": READING,
        "rows": [row._asdict() for part in found.values() for row in lines(part)],
        "took": {name: {o.name: o.took for o in part} for name, part in found.items()},
        "curves": {
            name: {o.name: [curve._asdict() for curve in o.curves] for o in part}
            for name, part in found.items()
        },
    }
    text = json.dumps(_rounded(record), indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    RESULTS.mkdir(exist_ok=True)
    KEPT.write_text(text + "\n")


def kept() -> Found:
    """The curves of the last run, for figures."""
    record = json.loads(KEPT.read_text())

    def curve(columns: dict) -> Curve:
        return Curve(**{name: np.array(column, float).tolist() for name, column in columns.items()})

    return {
        task: [
            Outcome(task, name, None, [curve(c) for c in runs], 0.0) for name, runs in of.items()
        ]
        for task, of in record["curves"].items()
    }


def kept_lines() -> dict[str, list[Line]]:
    """The tables of the last run."""
    record = json.loads((RESULTS / "problems.json").read_text())
    found: dict[str, list[Line]] = {}
    for row in record["rows"]:
        found.setdefault(row["task"], []).append(Line(**row))
    return found


def draw(found: Found) -> None:
    curves = {name: {o.name: o.curves for o in part if o.curves} for name, part in found.items()}
    pictures.draw(curves, [reached(part, "gradients") for part in found.values()])
    print(f"Drawn in {pictures.FOLDER}.")


def _rounded(tree: Any) -> Any:
    """Five digits, and no number where there is none: JSON has no infinity."""
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.5g}") if math.isfinite(tree) else None
    return tree


def _tells_steps(kind: type[AbstractMethod]) -> bool:
    """Whether a method has step sizes to race multiples of."""
    return kind.theory.__func__ is not AbstractMethod.theory.__func__


def main() -> None:
    if "--draw" in sys.argv:
        draw(kept())
        return
    found = {}
    for part in PARTS:
        outcome = outcomes(part, [kind for kind in methods.all_methods() if _tells_steps(kind)])
        found[outcome[0].task] = outcome
        print(f"\n{outcome[0].task}, {part.budget:.1g} gradients", flush=True)
        print(f"{table(lines(outcome))}\n", flush=True)
    keep(found)
    print(f"{READING}\nKept in {KEPT}.")
    draw(found)


if __name__ == "__main__":
    main()
