"""A box around all points that satisfy the linear constraints, and points drawn from it."""

from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.stats import qmc

from bilevel.global_search.functions import Functions

RADII = (
    -2.0,
    3.0,
)  # exponents of ten: how far from a centre samples of y lie, at scale 1 + |y|


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

    def around(self, centres: np.ndarray, count: int) -> np.ndarray:
        """Points y near some centres on all scales, and all over the box where it is closed.

        Args:
            centres: rows x k x m.

        Returns:
            rows x count x m.
        """
        lo, hi = self.lo[self.n :], self.hi[self.n :]
        m, k = len(lo), centres.shape[1]
        cube = qmc.Halton(m + 1, scramble=False).random(count + 1)[1:]
        index = np.arange(count)
        exponent = RADII[0] + (RADII[1] - RADII[0]) * cube[:, -1:]
        centre = centres[:, index % k]
        near = centre + 10.0**exponent * (1 + np.abs(centre)) * (2 * cube[:, :-1] - 1)
        whole = (np.isfinite(lo) & np.isfinite(hi)) & (index[:, None] % 2 == 0)
        with np.errstate(invalid="ignore"):
            near = np.where(whole, lo + cube[:, :-1] * (hi - lo), near)
        return np.clip(near, lo, np.maximum(lo, hi))


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
