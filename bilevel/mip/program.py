"""A bilevel program in numbers: columns and rows, and which of them are the follower's."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from bilevel.errors import Refused

INF = float("inf")
MOST_ENTRIES = 20_000_000  # of the matrix, which is held dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Leader and follower over one vector z of columns: some are the leader's x, others y.

        min over z   cost·z + ½ zᵀ hessian z + share · Σ_ij follower_hessian[y_j, x_i] x_i y_j
        where        row_lower <= rows z <= row_upper, lower <= z <= upper, z[integer] whole,
        and y is an answer of the follower to x:
        min over y   follower_cost·z + ½ zᵀ follower_hessian z   over the rows and bounds of y.

    Of several answers the leader takes the one it likes best (optimistic). The follower's rows are
    those marked in `follower_rows`, and its bounds those of its columns. The other rows are the
    leader's; they may hold y, and the follower does not see them.

    Args:
        cost: of the leader, an entry a column.
        rows: the matrix, a row a constraint.
        follower: marks the columns that are the follower's.
        row_lower, row_upper, lower, upper: `±INF` where there is no bound; 0 and `INF` for columns
            when absent.
        integer: marks the columns that are whole numbers.
        hessian: of the leader's loss, symmetric and positive semidefinite; none when absent.
        follower_hessian: of the follower's loss, symmetric; its y block is positive semidefinite,
            its block of y and x holds the products of both, and its x block counts for nothing.
        share: a multiple of the follower's products of x and y is part of the leader's loss, as
            in `−tolls · flows`. The follower's loss is then linear in y, and its rows hold no x.
        names: of the columns; x0, x1, ... when absent.

    Raises:
        ValueError: shapes do not fit, a number is NaN, or a loss is not convex.
    """

    cost: Float[np.ndarray, " n"]
    rows: Float[np.ndarray, "m n"]
    follower: Bool[np.ndarray, " n"]
    follower_rows: Bool[np.ndarray, " m"]
    follower_cost: Float[np.ndarray, " n"]
    row_lower: Float[np.ndarray, " m"] = None  # type: ignore[assignment]
    row_upper: Float[np.ndarray, " m"] = None  # type: ignore[assignment]
    lower: Float[np.ndarray, " n"] = None  # type: ignore[assignment]
    upper: Float[np.ndarray, " n"] = None  # type: ignore[assignment]
    integer: Bool[np.ndarray, " n"] = None  # type: ignore[assignment]
    hessian: Float[np.ndarray, "n n"] | None = None
    follower_hessian: Float[np.ndarray, "n n"] | None = None
    share: float = 0.0
    names: tuple[str, ...] = ()

    def __post_init__(self):
        n, m = np.size(self.cost), len(self.rows)
        if n * (m + n) > MOST_ENTRIES:
            raise ValueError(f"{m} rows of {n} columns are too many; a matrix is held in full.")
        self._fill("cost", np.zeros(n))
        self._fill("rows", np.zeros((m, n)))
        self._fill("follower", np.zeros(n, bool))
        self._fill("follower_rows", np.zeros(m, bool))
        self._fill("follower_cost", np.zeros(n))
        self._fill("row_lower", np.full(m, -INF))
        self._fill("row_upper", np.full(m, INF))
        self._fill("lower", np.zeros(n))
        self._fill("upper", np.full(n, INF))
        self._fill("integer", np.zeros(n, bool))
        for name in ("hessian", "follower_hessian"):
            if getattr(self, name) is not None:
                self._fill(name, np.zeros((n, n)))
                self._check_symmetric(name)
        object.__setattr__(self, "names", self.names or tuple(f"x{i}" for i in range(n)))
        self._check()

    def _fill(self, name: str, default: Any) -> None:
        given = getattr(self, name)
        value = default if given is None else np.array(given, default.dtype)
        if value.shape != default.shape:
            raise ValueError(f"{name} has shape {value.shape}; {default.shape} is needed.")
        if np.isnan(value).any():
            raise ValueError(f"{name} holds NaN.")
        object.__setattr__(self, name, value)

    def _check_symmetric(self, name: str) -> None:
        value = getattr(self, name)
        if not np.allclose(value, value.T):
            raise ValueError(f"{name} is not symmetric.")

    def _check(self) -> None:
        if not self.follower.any():
            raise ValueError("no column is the follower's; mark at least one in follower.")
        if self.hessian is not None:
            _check_convex("hessian", self.hessian)
        if self.follower_hessian is not None:
            y = self.follower
            _check_convex("follower_hessian of the follower's columns", self.yy[np.ix_(y, y)])
        shared = self.rows[np.ix_(self.follower_rows, ~self.follower)]
        if self.share and (self.yy.any() or shared.any()):
            raise ValueError(
                "share is for a follower whose loss is linear in y and whose rows hold no column "
                "of the leader."
            )

    @property
    def yy(self) -> Float[np.ndarray, "n n"]:
        """The follower's Hessian in y; zeros elsewhere."""
        return self._block(self.follower)

    @property
    def yx(self) -> Float[np.ndarray, "n n"]:
        """The follower's products of y (rows) and x (columns); zeros elsewhere."""
        return self._block(~self.follower)

    def _block(self, columns) -> Float[np.ndarray, "n n"]:
        if self.follower_hessian is None:
            return np.zeros((len(self.cost),) * 2)
        return np.where(np.outer(self.follower, columns), self.follower_hessian, 0.0)

    def value(self, z: Float[np.ndarray, " n"]) -> float:
        """The leader's loss."""
        curved = 0.0 if self.hessian is None else 0.5 * z @ self.hessian @ z
        return float(self.cost @ z + curved + self.share * (z @ self.yx @ z))

    def follower_value(self, z: Float[np.ndarray, " n"]) -> float:
        """The follower's loss, without what no y changes."""
        y = np.where(self.follower, z, 0)
        return float(self.follower_cost @ y + 0.5 * y @ self.yy @ y + z @ self.yx @ z)

    def violation(self, z: Float[np.ndarray, " n"]) -> float:
        """The largest violation of a row, a bound or a whole number."""
        rows = self.rows @ z
        short = np.concatenate(
            [self.row_lower - rows, rows - self.row_upper, self.lower - z, z - self.upper]
        )
        whole = np.abs(z - np.round(z))[self.integer]
        return float(max(0.0, short.max(initial=0), whole.max(initial=0)))


def _check_convex(name: str, matrix) -> None:
    least = np.linalg.eigvalsh(matrix)[0] if len(matrix) else 0.0
    if least < -1e-9 * (1 + np.abs(matrix).max()):
        raise Refused(f"{name} has the eigenvalue {least:.3g}; a convex loss is needed.")
