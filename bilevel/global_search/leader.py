"""The upper problem over points where the follower's optimality conditions hold, by SQP."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from bilevel.global_search.functions import LOWER, UPPER, Functions


class Cut(NamedTuple):
    """An answer the follower likes better: `f(x, y) <= f(x, y_j + D (x − x_j))` from now on."""

    x: np.ndarray
    y: np.ndarray
    D: np.ndarray  # how that answer moves with x


def polish(
    functions: Functions,
    z: np.ndarray,
    dual: np.ndarray,
    force: np.ndarray,
    cuts: tuple[Cut, ...] = (),
    relaxations: tuple[float, ...] = (1e-3, 1e-9),
    *,
    at_x: bool = False,
    sign: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A local minimum of the upper loss, from (x, y) with the follower's multipliers.

    Minimises F over (x, y, λ, μ) subject to the upper constraints and all cuts, to
    `∇_y f + λᵀ ∇_y g + μᵀ ∇_y h = 0`, `g <= 0 <= λ`, `h = 0`, and to `−λᵀ g <= t` for relaxations
    t that fall. The lower loss is divided by the size of its gradient. Equations that depend on
    others, as where the follower has a continuum of answers, are replaced by independent ones.

    Args:
        at_x: x stays, and y moves among the follower's answers to it.
        sign: −1 for a maximum of the upper loss.
    """
    system = _System(functions, z, cuts, sign)
    v = np.concatenate([z, dual * system.scale, force * system.scale])
    for t in relaxations:
        system.relaxation, rough = t, t != relaxations[-1]
        v = _slsqp(system, v, at_x, 30 if rough else 60, 1e-5 if rough else 1e-11)
    return system.split(v)


def refine(
    functions: Functions, z: np.ndarray, dual: np.ndarray, force: np.ndarray, at_x: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same program near its solution, to rounding: what is active there stays active.

    Lower inequalities whose multiplier is larger than their slack become equations, the others
    lose their multiplier, so that no complementarity is left to relax.
    """
    system = _System(functions, z, ())
    v = np.concatenate([z, dual * system.scale, force * system.scale])
    system.active = active = dual * system.scale > -functions(z[None]).c[0, functions.g]
    v[functions.size : functions.size + system.p] *= active
    return system.split(_slsqp(system, v, at_x, 60, 1e-14))


def _slsqp(system: "_System", v: np.ndarray, at_x: bool, steps: int, tol: float) -> np.ndarray:
    system.make_independent(v)
    bounds: list[tuple[float | None, float | None]] = list(system.bounds)
    if at_x:
        bounds[: system.f.n] = [(value, value) for value in v[: system.f.n]]
    if system.active is not None:
        N = system.N
        for k in np.flatnonzero(~system.active):
            bounds[N + k] = (0, 0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = minimize(
            system.cost,
            v,
            jac=system.cost_gradient,
            bounds=bounds,
            constraints=system.constraints,
            method="SLSQP",
            options={"maxiter": steps, "ftol": tol},
        )
    return found.x if np.isfinite(found.x).all() else v


class _System:
    """Values and derivatives in `v = (x, y, λ, μ)`; one evaluation serves all that SQP asks for."""

    def __init__(self, functions: Functions, z: np.ndarray, cuts: tuple[Cut, ...], sign=1.0):
        self.f, self.cuts, self.relaxation, self.sign = functions, cuts, 0.0, sign
        self.active: np.ndarray | None = None  # lower inequalities that are equations
        self.mix: np.ndarray | None = None  # rows: independent combinations of the equations
        self.p, self.q, self.N = len(functions.g), len(functions.h), functions.size
        slope = np.abs(functions(z[None]).J[0, LOWER]).max(initial=0)
        self.scale = 1 / max(1.0, slope) if np.isfinite(slope) else 1.0
        self._at = None
        free = [(None, None)]
        self.bounds = free * self.N + [(0, None)] * self.p + free * self.q
        self.constraints = [
            {"type": "ineq", "fun": lambda v: self._of(v)[1], "jac": lambda v: self._of(v)[2]},
            {"type": "eq", "fun": lambda v: self._of(v)[3], "jac": lambda v: self._of(v)[4]},
        ]

    def split(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z and the multipliers of the lower problem, undivided."""
        N, p = self.N, self.p
        return v[:N], v[N : N + p] / self.scale, v[N + p :] / self.scale

    def make_independent(self, v: np.ndarray) -> None:
        """Combine equations whose slopes at v depend on each other; SLSQP stops at such ones."""
        self.mix, self._at = None, None
        slopes = self._of(v)[4]
        if not len(slopes):
            return
        left, sizes, _ = np.linalg.svd(slopes, full_matrices=False)
        rank = int((sizes > 1e-10 * max(sizes[0], 1.0)).sum())
        if rank < len(slopes):
            self.mix, self._at = left[:, :rank].T, None

    def cost(self, v):
        return self.sign * self._of(v)[0][0]

    def cost_gradient(self, v):
        return self.sign * self._of(v)[0][1]

    def _of(self, v):
        if self._at is None or not np.array_equal(self._at[0], v):
            self._at = v.copy(), self._compute(v)
        return self._at[1]

    def _compute(self, v):
        f, N, n, p, q = self.f, self.N, self.f.n, self.p, self.q
        z, dual, force = v[:N], v[N : N + p], v[N + p :]
        points = np.concatenate([z[None], *(self._rival(cut, z)[None] for cut in self.cuts)])
        w = f.weights(len(points))
        w[0, LOWER], w[0, f.g], w[0, f.h] = self.scale, dual, force
        every = f(points, w)
        c, J, W = every.at(0)
        wide = np.zeros((len(c), p + q))

        def rows(which):
            return np.concatenate([J[which], wide[which]], 1)

        complementarity = np.concatenate([dual @ J[f.g], c[f.g], np.zeros(q)])
        kept = f.g if self.active is None else f.g[~self.active]
        held = f.g[:0] if self.active is None else f.g[self.active]
        inequalities: list[Any] = [-c[f.G], -c[kept]]
        slopes = [-rows(f.G), -rows(kept)]
        if self.active is None:
            inequalities.append([self.relaxation + dual @ c[f.g]])
            slopes.append(complementarity[None])
        for k, cut in enumerate(self.cuts, start=1):
            there, slope = every.c[k, LOWER], every.J[k, LOWER]
            gradient = J[LOWER].copy()
            gradient[:n] -= slope[:n] + slope[n:] @ cut.D
            inequalities.append([self.scale * (there - c[LOWER])])
            slopes.append(-self.scale * np.concatenate([gradient, np.zeros(p + q)])[None])
        stationarity = self.scale * J[LOWER, n:] + dual @ J[f.g, n:] + force @ J[f.h, n:]
        curvature = np.concatenate([W[n:], J[f.g, n:].T, J[f.h, n:].T], 1)
        equations = np.concatenate([stationarity, c[f.H], c[f.h], c[held]])
        curvatures = np.concatenate([curvature, rows(f.H), rows(f.h), rows(held)])
        if self.mix is not None:
            equations, curvatures = self.mix @ equations, self.mix @ curvatures
        parts = (
            (c[UPPER], np.concatenate([J[UPPER], np.zeros(p + q)])),
            np.concatenate(inequalities),
            np.concatenate(slopes),
            equations,
            curvatures,
        )
        return (parts[0][0], parts[0][1]), *(_tame(part) for part in parts[1:])

    def _rival(self, cut: Cut, z: np.ndarray) -> np.ndarray:
        x = z[: self.f.n]
        return np.concatenate([x, cut.y + cut.D @ (x - cut.x)])


def _tame(a: np.ndarray) -> np.ndarray:
    return np.nan_to_num(a, nan=1e10, posinf=1e10, neginf=-1e10)


def sensitivity(functions: Functions, z: np.ndarray, dual: np.ndarray, force: np.ndarray):
    """`D = ∂y/∂x` of the follower's local minimum at z, its active constraints staying active."""
    f, n = functions, functions.n
    w = f.weights(1)
    w[0, LOWER], w[0, f.g], w[0, f.h] = 1.0, dual, force
    c, J, W = f(z[None], w).at(0)
    active = f.g[(c[f.g] > -1e-6) & (dual > 1e-8)]
    E = J[np.concatenate([active, f.h])]
    k = len(E)
    matrix = np.block([[W[n:, n:], E[:, n:].T], [E[:, n:], np.zeros((k, k))]])
    right = -np.concatenate([W[n:, :n], E[:, :n]])
    with np.errstate(all="ignore"):
        D = np.linalg.lstsq(matrix, right, rcond=1e-9)[0][: f.m]
    return D if np.isfinite(D).all() else np.zeros((f.m, n))
