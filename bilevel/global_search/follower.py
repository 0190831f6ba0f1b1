"""The lower problem at given x, solved globally: minima from many starts, and the best of them."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.stats import qmc

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.interior import Minima, minimise

TIED = 1e-6  # relative: minima this close are equally good for the follower
WIDE = 1e4  # a longer side of the box is searched from the start outwards, too


class Responses(NamedTuple):
    """The follower's best answer at each x, the leader's favourite among equals."""

    z: np.ndarray  # (x, y*(x)); NaN where no start ended in a minimum
    c: np.ndarray  # all functions there
    dual: np.ndarray  # multipliers of the lower inequalities
    force: np.ndarray  # multipliers of the lower equations
    lower: np.ndarray  # the least lower loss that was found; infinite where none

    def take(self, which) -> "Responses":
        """At some x."""
        return Responses(*(part[which] for part in self))


class Region:
    """A box around all points that satisfy the linear constraints, to draw starts from."""

    def __init__(self, functions: Functions):
        self.z0, self.n = functions.z0, functions.n
        self.lo, self.hi = _bounds(functions)

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Points spread over the box, and nearer to the start where the box is wide or open."""
        cube = qmc.Halton(len(self.z0), scramble=False).random(count)
        cube = (cube + np.random.default_rng(seed).random(len(self.z0))) % 1
        return self.place(cube, np.arange(count))

    def grid(self, count: int) -> np.ndarray:
        """A regular grid of x, `count` a side where the box is closed, with drawn y."""
        n = self.n
        if not count or not np.isfinite([self.lo[:n], self.hi[:n]]).all():
            return np.zeros((0, len(self.z0)))
        sides = [
            np.linspace(lo, hi, count) for lo, hi in zip(self.lo[:n], self.hi[:n], strict=True)
        ]
        x = np.stack([side.ravel() for side in np.meshgrid(*sides)], 1)
        return np.concatenate([x, self.draw(len(x), seed=2)[:, n:]], 1)

    def place(self, cube: np.ndarray, index: np.ndarray) -> np.ndarray:
        """From the unit cube; every third point lies close to the start in wide directions."""
        radius = np.array([2.0, 10.0, 50.0])[index % 3][:, None] * (1 + np.abs(self.z0))
        near_lo = np.maximum(self.lo, self.z0 - radius)
        near_hi = np.minimum(self.hi, self.z0 + radius)
        # A start outside of the box leaves an empty range: begin at the box's nearest side.
        near_lo, near_hi = (
            np.where(
                near_lo < near_hi,
                near_lo,
                np.maximum(self.lo, np.minimum(self.z0, self.hi) - radius),
            ),
            np.where(
                near_lo < near_hi,
                near_hi,
                np.minimum(self.hi, np.maximum(self.z0, self.lo) + radius),
            ),
        )
        closed = np.isfinite(self.lo) & np.isfinite(self.hi)
        whole = closed & ((index[:, None] % 3 > 0) | (self.hi - self.lo <= radius))
        lo, hi = np.where(whole, self.lo, near_lo), np.where(whole, self.hi, near_hi)
        return lo + cube * (hi - lo)


def _bounds(functions: Functions) -> tuple[np.ndarray, np.ndarray]:
    inequalities = [k for k in (*functions.G, *functions.g) if functions.linear[k]]
    equations = [k for k in (*functions.H, *functions.h) if functions.linear[k]]
    n, rows = functions.size, functions.lower_rows
    A, E = rows[inequalities], rows[equations]
    sides = np.full((2, n), np.inf) * np.array([[-1], [1]])
    limits: dict[str, Any] = {"A_ub": A[:, :n], "b_ub": -A[:, n]} if len(A) else {}
    limits |= {"A_eq": E[:, :n], "b_eq": -E[:, n]} if len(E) else {}
    if not limits:
        return sides[0], sides[1]
    for j in range(n):
        for side, sign in ((0, 1.0), (1, -1.0)):
            cost = np.zeros(n)
            cost[j] = sign
            found = linprog(cost, **limits, bounds=(None, None))
            if found.status == 0:
                sides[side, j] = found.x[j]
    return sides[0], sides[1]


class Follower:
    """Solves the lower problem at many x together."""

    def __init__(self, functions: Functions, region: Region):
        self.functions, self.region = functions, region
        self.starts = 0  # used so far

    def minima(self, x: np.ndarray, starts: int, extra: np.ndarray | None = None) -> Minima:
        """Local minima at each row of x from `starts` drawn points and `extra` (rows x k x m).

        Returns arrays with a row for each x and start, the starts of one x side by side.
        """
        f, n = self.functions, self.functions.n
        y = self.region.draw(starts, seed=1)[:, n:]
        every = np.repeat(y[None], len(x), 0)
        if extra is not None:
            every = np.concatenate([extra, every], 1)
        z = np.concatenate([np.repeat(x[:, None], every.shape[1], 1), every], 2)
        self.starts += z.shape[0] * z.shape[1]
        return minimise(f, z.reshape(-1, f.size), slice(n, None), f.g, f.h, cost=LOWER)

    def respond(self, x: np.ndarray, starts: int, extra: np.ndarray | None = None) -> Responses:
        """The global answer at each row of x."""
        found = self.minima(x, starts, extra)
        c = found.c.reshape(len(x), -1, found.c.shape[1])
        upper, lower = self.functions.violations(found.c)
        solved = (lower <= FEASIBLE) & (found.error <= 1e-5)
        g = np.where(solved.reshape(c.shape[:2]), c[:, :, LOWER], np.inf)
        best = g.min(1)
        with np.errstate(invalid="ignore"):
            tied = g <= (best + TIED * (1 + np.abs(best)))[:, None]
        liked = c[:, :, UPPER] + np.where(upper <= FEASIBLE, 0, 1e8 * (1 + upper)).reshape(g.shape)
        pick = np.where(tied & np.isfinite(g), liked, np.inf).argmin(1)
        rows = np.arange(len(x)) * g.shape[1] + pick
        picked = found.take(rows)
        z = np.where(np.isfinite(best)[:, None], picked.z, np.nan)
        return Responses(z, picked.c, picked.dual, picked.force, best)
