"""The upper problem over points where the follower's optimality conditions hold, by SQP."""

import warnings
from typing import NamedTuple

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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A local minimum of the upper loss, from (x, y) with the follower's multipliers.

    Minimises F over (x, y, λ, μ) subject to the upper constraints and all cuts, to
    `∇_y f + λᵀ ∇_y g + μᵀ ∇_y h = 0`, `g <= 0 <= λ`, `h = 0`, and to `−λᵀ g <= t` for relaxations
    t that fall. The lower loss is divided by the size of its gradient.
    """
    system = _System(functions, z, cuts)
    v = np.concatenate([z, dual * system.scale, force * system.scale])
    for t in relaxations:
        system.relaxation, rough = t, t != relaxations[-1]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = minimize(
                system.cost,
                v,
                jac=system.cost_gradient,
                bounds=system.bounds,
                constraints=system.constraints,
                method="SLSQP",
                options={"maxiter": 30 if rough else 60, "ftol": 1e-5 if rough else 1e-11},
            )
        if np.isfinite(found.x).all():
            v = found.x
    n, p = functions.size, len(functions.g)
    return v[:n], v[n : n + p] / system.scale, v[n + p :] / system.scale


class _System:
    """Values and derivatives in `v = (x, y, λ, μ)`; one evaluation serves all that SQP asks for."""

    def __init__(self, functions: Functions, z: np.ndarray, cuts: tuple[Cut, ...]):
        self.f, self.cuts, self.relaxation = functions, cuts, 0.0
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

    def cost(self, v):
        return self._of(v)[0][0]

    def cost_gradient(self, v):
        return self._of(v)[0][1]

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
        inequalities = [-c[f.G], -c[f.g], [self.relaxation + dual @ c[f.g]]]
        slopes = [-rows(f.G), -rows(f.g), complementarity[None]]
        for k, cut in enumerate(self.cuts, start=1):
            there, slope = every.c[k, LOWER], every.J[k, LOWER]
            gradient = J[LOWER].copy()
            gradient[:n] -= slope[:n] + slope[n:] @ cut.D
            inequalities.append([self.scale * (there - c[LOWER])])
            slopes.append(-self.scale * np.concatenate([gradient, np.zeros(p + q)])[None])
        stationarity = self.scale * J[LOWER, n:] + dual @ J[f.g, n:] + force @ J[f.h, n:]
        curvature = np.concatenate([W[n:], J[f.g, n:].T, J[f.h, n:].T], 1)
        equations = [stationarity, c[f.H], c[f.h]]
        curvatures = [curvature, rows(f.H), rows(f.h)]
        parts = (
            (c[UPPER], np.concatenate([J[UPPER], np.zeros(p + q)])),
            np.concatenate(inequalities),
            np.concatenate(slopes),
            np.concatenate(equations),
            np.concatenate(curvatures),
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
