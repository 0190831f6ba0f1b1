"""HiGHS as this package uses it: one model, whose bounds and costs change between solves.

A convex quadratic loss is a sum of squares, each the maximum of its tangents; tangents are added
where a solution lies above them. So whole numbers and a quadratic loss go together, and every bound
is one of a (mixed-integer) linear program.

Huangfu, Hall. "Parallelizing the dual revised simplex method". Mathematical Programming
Computation 2018.
"""

import enum
import time
from typing import Any, NamedTuple

import numpy as np

from bilevel.files import needs

PRECISION = {
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "mip_feasibility_tolerance": 1e-9,
    "mip_rel_gap": 1e-9,
    "mip_abs_gap": 1e-9,
}
TANGENT = 1e-9  # how far a square may lie above its tangents, relative to the loss
MOST_ROUNDS = 200


class Found(enum.Enum):
    """What HiGHS says of a model."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"  # or infeasible; it does not always say which
    LATE = "late"  # time ran out: z is the best point so far, or `None`, and the bound holds


class Solved(NamedTuple):
    found: Found
    z: Any  # the columns, where optimal
    value: float
    bound: float  # proved by HiGHS


class Parts(NamedTuple):
    """A program in one level: `min cost·z + ½ zᵀ hessian z` over rows, bounds and whole numbers."""

    cost: Any
    rows: Any
    row_lower: Any
    row_upper: Any
    lower: Any
    upper: Any
    integer: Any
    hessian: Any = None


class Model:
    """A model that HiGHS holds. Changes stay until they are changed back.

    Args:
        until: a time of `time.monotonic()` after which no solve goes on.

    Raises:
        ImportError: highspy is not installed.
    """

    def __init__(self, parts: Parts, until: float = np.inf):
        self.until = until
        self.highspy: Any = needs("highspy", extra="mip", what="mixed-integer programs")
        self.n, self.mixed = len(parts.cost), bool(np.any(parts.integer))
        self.weights, self.directions = _squares(parts.hessian, self.n)
        k, cost = len(self.weights), np.asarray(parts.cost, float)
        # cost·z + ½ Σ w s² = rest·z + ½ Σ w (s + shift)² + a constant: with what slopes along the
        # squares inside of them, the model without tangents is no further unbounded.
        self.shift = self.directions @ cost / self.weights
        rest = cost - (self.weights * self.shift) @ self.directions
        # `Highs` prints a banner before it can be silenced.
        self.highs = self.highspy._core._Highs()
        self.highs.setOptionValue("output_flag", False)
        self.highs.setOptionValue("threads", 1)
        for name, value in PRECISION.items():
            self.highs.setOptionValue(name, value)
        with_squares = parts._replace(
            cost=np.concatenate([rest, np.ones(k)]),
            rows=np.pad(parts.rows, ((0, 0), (0, k))),
            lower=np.concatenate([parts.lower, np.zeros(k)]),
            upper=np.concatenate([parts.upper, np.full(k, np.inf)]),
            integer=np.concatenate([parts.integer, np.zeros(k, bool)]),
        )
        lp = _lp(self.highspy, with_squares)
        lp.offset_ = -float(self.weights @ self.shift**2) / 2
        self.highs.passModel(lp)

    def column(self, i: int, low: float, high: float) -> None:
        """Change the bounds of a column."""
        self.highs.changeColBounds(i, low, high)

    def row(self, i: int, low: float, high: float) -> None:
        """Change the bounds of a row."""
        self.highs.changeRowBounds(i, low, high)

    def costs(self, cost) -> None:
        """Change the linear loss of a model without squares."""
        n = len(cost)
        self.highs.changeColsCost(n, np.arange(n, dtype=np.int32), np.asarray(cost, float))

    def solve(self) -> Solved:
        """Solve the model as it stands.

        Raises:
            RuntimeError: HiGHS gave up.
        """
        solved = self._once()
        for _ in range(MOST_ROUNDS):
            if solved.found is not Found.OPTIMAL or not self._add_tangents(solved):
                break
            solved = self._once()
        return solved if solved.z is None else solved._replace(z=solved.z[: self.n])

    def _once(self) -> Solved:
        kinds = self.highspy.HighsModelStatus
        optimal, sure = (kinds.kOptimal, kinds.kModelEmpty), (kinds.kInfeasible, kinds.kUnbounded)
        if np.isfinite(self.until):
            left = max(0.0, self.until - time.monotonic())
            self.highs.setOptionValue("time_limit", self.highs.getRunTime() + left)
        self.highs.run()
        if self.highs.getModelStatus() == kinds.kTimeLimit:
            return self._late()
        if self.highs.getModelStatus() not in (*optimal, *sure):  # start again, without presolve
            self.highs.clearSolver()
            self.highs.setOptionValue("presolve", "off")
            self.highs.run()
            self.highs.setOptionValue("presolve", "choose")
        status = self.highs.getModelStatus()
        if status in optimal:
            info = self.highs.getInfo()
            value = info.objective_function_value
            bound = info.mip_dual_bound if self.mixed else value
            return Solved(Found.OPTIMAL, np.array(self.highs.getSolution().col_value), value, bound)
        if status == kinds.kInfeasible:
            return Solved(Found.INFEASIBLE, None, np.inf, np.inf)
        if status in (kinds.kUnbounded, kinds.kUnboundedOrInfeasible):
            return Solved(Found.UNBOUNDED, None, -np.inf, -np.inf)
        raise RuntimeError(f"HiGHS ended with {self.highs.modelStatusToString(status)}.")

    def _late(self) -> Solved:
        info = self.highs.getInfo()
        bound = info.mip_dual_bound if self.mixed else -np.inf
        value = info.objective_function_value if self.mixed else np.inf
        some = bool(np.isfinite(value))
        z = np.array(self.highs.getSolution().col_value) if some else None
        return Solved(Found.LATE, z, value if some else np.inf, bound)

    def _add_tangents(self, solved: Solved) -> bool:
        """A tangent for each square that lies above those it has; whether there was one."""
        at = self.directions @ solved.z[: self.n] + self.shift
        above = self.weights * at**2 / 2 - solved.z[self.n :]
        short = np.flatnonzero(above > TANGENT * (1 + abs(solved.value)))
        columns = np.arange(self.n + 1, dtype=np.int32)
        for k in short:  # ½ w s² >= w a s − ½ w a², s = direction·z + shift
            w, a = self.weights[k], at[k]
            columns[-1] = self.n + k
            row = np.append(-w * a * self.directions[k], 1.0)
            low = w * a * self.shift[k] - w * a**2 / 2
            self.highs.addRow(low, np.inf, self.n + 1, columns, row)
        return len(short) > 0


def _squares(hessian, n: int) -> tuple[Any, Any]:
    """`½ zᵀ hessian z = Σ ½ weight (direction·z)²`, the squares of weight zero left out."""
    if hessian is None or not np.any(hessian):
        return np.zeros(0), np.zeros((0, n))
    weights, vectors = np.linalg.eigh(hessian)
    some = weights > 1e-12 * weights[-1]
    return weights[some], vectors.T[some]


def _lp(highspy: Any, parts: Parts) -> Any:
    """The linear part, as HiGHS takes it."""
    lp = highspy.HighsLp()
    m, n = parts.rows.shape
    lp.num_col_, lp.num_row_ = n, m
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = parts.cost, parts.lower, parts.upper
    lp.row_lower_, lp.row_upper_ = parts.row_lower, parts.row_upper
    rows, columns = np.nonzero(parts.rows)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.searchsorted(rows, np.arange(m + 1)).astype(np.int32)
    lp.a_matrix_.index_ = columns.astype(np.int32)
    lp.a_matrix_.value_ = np.ascontiguousarray(parts.rows[rows, columns], float)
    if np.any(parts.integer):
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if i else kinds.kContinuous for i in parts.integer]
    return lp
