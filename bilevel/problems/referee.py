"""Checks whether a point solves a textbook problem, independently of the solver's code.

Expressions are evaluated by NumPy. The lower problem is solved again at the given x by SciPy: from
many starts, from a fine sample in few dimensions, and by linear programming if it is linear.
"""

import enum
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog, minimize

from bilevel.problems.textbook import LISTS, Textbook, parse

FEASIBLE = 1e-6  # largest violation
RIVAL = 1e-9  # largest violation of an answer that is held against y
STARTS = 24
SAMPLES = 20000


class Rule(NamedTuple):
    """How exact a solution must be."""

    gap: float  # times 1 + |lower|: the largest gap of the follower
    worse: float  # times 1 + |best|: how far above the best known upper value
    printed: bool  # half a unit of that value's last printed digit is allowed, too

    def room(self, best: float) -> float:
        """How far an upper value may be from the best known one."""
        return max(self.worse * (1 + abs(best)), half_unit(best) if self.printed else 0.0)


STRICT = Rule(gap=1e-6, worse=1e-3, printed=True)
LOOSE = Rule(gap=1e-3, worse=1e-2, printed=False)


def half_unit(printed: float) -> float:
    """Half a unit of the last digit that a number is printed with; 0 for whole numbers."""
    digits = repr(float(printed)).partition("e")[0].partition(".")[2].rstrip("0")
    return 0.5 * 10.0 ** -len(digits) * (1 + 1e-9) if digits else 0.0


class Kind(enum.Enum):
    """The verdict on a point."""

    SOLVED = "solved"
    NO_REFERENCE = "feasible, no reference"
    WORSE = "feasible but worse"
    NOT_OPTIMAL = "follower not optimal"
    INFEASIBLE = "infeasible"


class Verdict(NamedTuple):
    """The result of a check at (x, y)."""

    kind: Kind  # by the strict rule
    upper: float
    lower: float
    lower_best: float  # the least lower loss found at this x
    violation: float  # the largest, of all constraints

    @property
    def gap(self) -> float:
        return max(self.lower - self.lower_best, 0.0)

    def optimal(self, rule: Rule = STRICT) -> bool:
        """Whether y is the follower's answer."""
        return self.gap <= rule.gap * (1 + abs(self.lower))

    def by(self, rule: Rule, reference: float | None) -> Kind:
        """What the point is by a rule."""
        if not self.violation <= FEASIBLE:
            return Kind.INFEASIBLE
        if not self.optimal(rule):
            return Kind.NOT_OPTIMAL
        if reference is None:
            return Kind.NO_REFERENCE
        near = self.upper <= reference + rule.room(reference)
        return Kind.SOLVED if near else Kind.WORSE


def judge(book: Textbook, x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> Verdict:
    """Re-solve the lower problem at x, and compare by the strict rule."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    upper, lower, *lists = _functions(book)
    with np.errstate(all="ignore"):
        upper_ineq, upper_eq, lower_ineq, lower_eq = (fn(x, y) for fn in lists)
        excess = [-upper_ineq, np.abs(upper_eq), -lower_ineq, np.abs(lower_eq), np.zeros(1)]
        violation = float(np.concatenate(excess).max())
        value, mine = float(upper(x, y)[0]), float(lower(x, y)[0])
    best = _follower(book, x, y, lower, lists[2], lists[3], np.random.default_rng(seed))
    best = min(best, mine)
    found = Verdict(Kind.SOLVED, value, mine, best, violation)
    return found._replace(kind=found.by(STRICT, book.upper_best))


def _functions(book: Textbook) -> list[Callable]:
    """`upper, lower, upper_ineq, upper_eq, lower_ineq, lower_eq`, one row per expression.

    y may have a trailing axis of points.
    """
    nx, ny = len(book.x0), len(book.y0)
    entry = book.entry

    def stacked(texts) -> Callable:
        parts = [parse(text, nx, ny, book.name, functions=np) for text in texts]

        def values(x, y):
            points = np.shape(y)[1:]
            rows = [np.broadcast_to(np.asarray(p(x, y), float), points) for p in parts]
            return np.stack(rows) if rows else np.zeros((0, *points))

        return values

    return [stacked([entry[key]]) for key in ("upper", "lower")] + [
        stacked(entry[key]) for key in LISTS
    ]


def _follower(book, x, y, lower, inequalities, equations, rng) -> float:
    """The lowest lower loss at x that several solvers find."""
    m = len(y)
    starts = [y, np.asarray(book.y0)]
    lo, hi = _bounds(x, y, inequalities, equations, rng)
    sample = rng.uniform(size=(m, SAMPLES))
    wide = 3 ** rng.uniform(-2, 3, size=(1, SAMPLES)) * (1 + np.abs(y))[:, None]
    low = np.where(np.isfinite(lo)[:, None], lo[:, None], y[:, None] - wide)
    high = np.where(np.isfinite(hi)[:, None], hi[:, None], y[:, None] + wide)
    sample = low + sample * (high - low)
    with np.errstate(all="ignore"):
        values = lower(x, sample)[0]
        inside = (inequalities(x, sample) >= 0).all(0) & np.isfinite(values)
        inside &= (np.abs(equations(x, sample)) <= FEASIBLE).all(0)
    order = np.flatnonzero(inside)[np.argsort(values[inside])]
    best = float(values[order[0]]) if len(order) else np.inf
    starts += [sample[:, i] for i in order[:6]]
    starts += [sample[:, i] for i in range(STARTS - len(starts))]
    for start in starts:
        best = min(best, _local(x, start, lower, inequalities, equations))
    return min(best, _linear(x, y, lower, inequalities, equations, rng))


def _local(x, start, lower, inequalities, equations) -> float:
    constraints = []
    if len(inequalities(x, start)):
        constraints.append({"type": "ineq", "fun": lambda y: inequalities(x, y)})
    if len(equations(x, start)):
        constraints.append({"type": "eq", "fun": lambda y: equations(x, y)})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = minimize(
                lambda y: lower(x, y)[0],
                start,
                method="SLSQP",
                constraints=constraints,
                options={"maxiter": 200, "ftol": 1e-12},
            )
        except (ValueError, ArithmeticError):
            return np.inf
        return _value(x, found.x, lower, inequalities, equations)


def _value(x, y, lower, inequalities, equations) -> float:
    with np.errstate(all="ignore"):
        inside = (inequalities(x, y) >= -RIVAL).all()
        inside = inside and (np.abs(equations(x, y)) <= RIVAL).all()
        value = float(lower(x, y)[0])
    return value if inside and np.isfinite(value) else np.inf


def _rows(function, x, y, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes and offsets `A y + b` of each row at x, and which rows are linear in y."""
    m = len(y)
    with np.errstate(all="ignore"):
        b = function(x, np.zeros(m))
        A = function(x, np.eye(m)) - b[:, None]
        probes = y[:, None] + 3 * rng.normal(size=(m, 8)) * (1 + np.abs(y))[:, None]
        error = np.abs(function(x, probes) - A @ probes - b[:, None]).max(1, initial=0)
        size = 1 + np.abs(A).max(1, initial=0) * np.abs(probes).max(initial=0) + np.abs(b)
    return A, b, np.isfinite(error) & (error <= 1e-9 * size)


def _polyhedron(x, y, inequalities, equations, rng):
    A, b, straight = _rows(inequalities, x, y, rng)
    E, d, level = _rows(equations, x, y, rng)
    limits: dict[str, Any] = {"bounds": (None, None)}
    if straight.any():
        limits |= {"A_ub": -A[straight], "b_ub": b[straight]}
    if level.any():
        limits |= {"A_eq": E[level], "b_eq": -d[level]}
    return limits, bool(straight.all() and level.all())


def _bounds(x, y, inequalities, equations, rng) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of y from the linear constraints."""
    m, (limits, _) = len(y), _polyhedron(x, y, inequalities, equations, rng)
    lo, hi = np.full(m, -np.inf), np.full(m, np.inf)
    for j in range(m):
        for sign, side in ((1.0, lo), (-1.0, hi)):
            found = linprog(sign * np.eye(m)[j], **limits)
            if found.status == 0:
                side[j] = found.x[j]
    return lo, hi


def _linear(x, y, lower, inequalities, equations, rng) -> float:
    """By linear programming, where the lower problem is linear in y."""
    limits, whole = _polyhedron(x, y, inequalities, equations, rng)
    slope, _, straight = _rows(lower, x, y, rng)
    if not (whole and straight.all()):
        return np.inf
    found = linprog(slope[0], **limits)
    if found.status == 3:
        return -np.inf  # no minimum
    return _value(x, found.x, lower, inequalities, equations) if found.status == 0 else np.inf
