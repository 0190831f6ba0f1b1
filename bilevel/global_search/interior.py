"""Local minima from many starting points at once, by a primal-dual interior-point method."""

from typing import NamedTuple

import numpy as np

from bilevel.global_search.functions import Functions, Values

TRIALS = 6  # lengths of a step, each shorter
SMALLEST = 1e-10  # the last barrier parameter
FAR = 1e7  # an iterate beyond this has no minimum in sight


class Minima(NamedTuple):
    """Where each start ended."""

    z: np.ndarray  # starts x variables
    c: np.ndarray  # all functions there
    dual: np.ndarray  # multipliers of the inequalities
    force: np.ndarray  # multipliers of the equations
    error: np.ndarray  # of the optimality conditions

    def take(self, which) -> "Minima":
        """Of some starts."""
        return Minima(*(part[which] for part in self))


def minimise(
    functions: Functions,
    z: np.ndarray,
    free: slice | np.ndarray,
    inequalities: np.ndarray,
    equations: np.ndarray,
    *,
    cost: int | None,
    steps: int = 60,
) -> Minima:
    """Minimise row `cost` over the free variables, the others held, from every row of z.

    Newton steps on `∇c + Jᵀλ + Eᵀμ = 0, g + s = 0, h = 0, s λ = σ` with σ to zero; eigenvalues of
    the reduced Hessian are replaced by their sizes, so that steps go downhill, and a merit function
    shortens them. Without a cost, the nearest point that satisfies the constraints is sought.
    """
    todo = np.arange(len(z))
    lanes = _Lanes(functions, z.copy(), free, inequalities, equations, cost)
    done = lanes.result()
    for _ in range(steps):
        lanes.step()
        result, finished = lanes.result(), lanes.finished()
        for whole, part in zip(done, result, strict=True):
            whole[todo] = part
        if finished.all():
            break
        if finished.mean() > 0.3:
            todo, lanes = todo[~finished], lanes.keep(~finished)
    return done


class _Lanes:
    """All starts that still move; every array has a row for each."""

    def __init__(self, functions, z, free, inequalities, equations, cost):
        self.functions, self.free, self.g, self.h = functions, free, inequalities, equations
        self.cost, self.z, self.target = cost, z, z[:, free].copy()
        self.scale = np.ones(len(z))
        first = functions(z)
        if cost is not None:
            slope = np.abs(first.J[:, cost, free]).max(1, initial=0)
            self.scale = 1 / np.clip(np.where(np.isfinite(slope), slope, 1), 1, 1e4)
        value = first.c[:, self.g]
        self.s = np.maximum(-value, 1e-1)
        self.s[~np.isfinite(self.s)] = 1.0
        self.sigma = np.full(len(z), 1e-1)
        self.dual = self.sigma[:, None] / self.s
        self.force = np.zeros((len(z), len(self.h)))
        self.delta = np.zeros(len(z))
        self.values = self._evaluate(z, self.dual, self.force)
        self.dead: np.ndarray = ~np.all(np.isfinite(self.values.c), axis=1)

    def keep(self, which: np.ndarray) -> "_Lanes":
        for name in ("z", "target", "scale", "s", "sigma", "dual", "force", "dead"):
            setattr(self, name, getattr(self, name)[which])
        self.values = self.values.at(which)
        return self

    def result(self) -> Minima:
        scale = self.scale[:, None]
        dual, force = np.minimum(self.dual, 1e100) / scale, self.force / scale
        error = np.where(self.dead, np.inf, self._error(0.0))
        return Minima(self.z.copy(), self.values.c.copy(), dual, force, error)

    def finished(self) -> np.ndarray:
        far = np.abs(self.z[:, self.free]).max(1, initial=0) > FAR
        self.dead |= far
        return self.dead | ((self.sigma <= SMALLEST) & (self._error(self.sigma) <= 1e-8))

    def _evaluate(self, z, dual, force) -> Values:
        w = self.functions.weights(len(z))
        if self.cost is not None:
            w[:, self.cost] = self.scale
        w[:, self.g], w[:, self.h] = dual, force
        return self.functions(z, w)

    def _gradient(self) -> np.ndarray:
        """Of the scaled cost."""
        if self.cost is None:
            return self.z[:, self.free] - self.target
        return self.scale[:, None] * self.values.J[:, self.cost, self.free]

    def _residuals(self, sigma):
        c, J, _ = self.values
        g, h = c[:, self.g], c[:, self.h]
        A, E = J[:, self.g][:, :, self.free], J[:, self.h][:, :, self.free]
        dual = self._gradient() + _pull(A, self.dual) + _pull(E, self.force)
        return A, E, dual, g + self.s, h, self.s * self.dual - np.reshape(sigma, (-1, 1))

    def _error(self, sigma) -> np.ndarray:
        with np.errstate(all="ignore"):
            _, _, *parts = self._residuals(sigma)
            weight = np.maximum(1, np.abs(self.dual).mean(1) if self.dual.size else 0)
            sizes = [np.abs(part).max(1, initial=0) for part in parts]
            sizes[0] = sizes[0] / weight
            return np.nan_to_num(np.max(sizes, axis=0), nan=np.inf)

    def _merit(self, c, z, s, weight) -> np.ndarray:
        with np.errstate(all="ignore"):
            if self.cost is None:
                value = ((z[:, self.free] - self.target) ** 2).sum(1) / 2
            else:
                value = self.scale * c[:, self.cost]
            barrier = self.sigma * np.log(s).sum(1)
            off = np.abs(c[:, self.g] + s).sum(1) + np.abs(c[:, self.h]).sum(1)
            merit = value - barrier + weight * off
            return np.where(np.isfinite(c).all(1) & np.isfinite(merit), merit, np.inf)

    def step(self) -> None:
        with np.errstate(all="ignore"):
            for _ in range(3):  # the barrier falls as soon as its own problem is solved
                near = self._error(self.sigma) <= 10 * self.sigma
                lower = np.maximum(np.minimum(0.2 * self.sigma, self.sigma**1.5), SMALLEST)
                self.sigma = np.where(near, lower, self.sigma)
            A, E, r_dual, r_g, r_h, r_c = self._residuals(self.sigma)
            ratio = self.dual / self.s
            H = self.values.W[:, self.free][:, :, self.free]
            m = H.shape[-1]
            if self.cost is None:
                H = H + np.eye(m)
            H = H + np.swapaxes(A, 1, 2) @ (ratio[:, :, None] * A)
            right = -r_dual - _pull(A, (self.dual * r_g - r_c) / self.s)
            dz, d_force = _solve(H, E, right, -r_h)
            ds = -r_g - np.einsum("bij,bj->bi", A, dz)
            d_dual = (-r_c - self.dual * ds) / self.s
            longest, longest_dual = _to_boundary(self.s, ds), _to_boundary(self.dual, d_dual)
            dual = self.dual + longest_dual[:, None] * d_dual
            force = self.force + longest_dual[:, None] * d_force
            largest = np.abs(np.concatenate([dual, force], 1)).max(1, initial=0)
            weight = 2 * np.maximum(largest, 1)
            before = self._merit(self.values.c, self.z, self.s, weight)
            t, taken = longest, self.dead.copy()
            new_z, new_s, new = self.z.copy(), self.s.copy(), self.values
            for trial in range(TRIALS):
                z = self.z.copy()
                z[:, self.free] += t[:, None] * dz
                s = self.s + t[:, None] * ds
                values = self._evaluate(z, dual, force)
                after = self._merit(values.c, z, s, weight)
                good = after <= before + 1e-10 * (1 + np.abs(before))
                now = ~taken & (good | ((trial == TRIALS - 1) & np.isfinite(after)))
                if trial == 0:
                    new = Values(*(v.copy() for v in values))
                for ours, theirs in zip((new_z, new_s, *new), (z, s, *values), strict=True):
                    ours[now] = theirs[now]
                taken |= now
                if taken.all():
                    break
                t = np.where(taken, t, t / 2 if trial < 2 else t / 8)
            self.dead |= ~taken
            stay: np.ndarray = self.dead
            for ours, theirs in zip(
                (new_z, new_s, *new), (self.z, self.s, *self.values), strict=True
            ):
                ours[stay] = theirs[stay]
            # Slacks that are larger than needed follow the constraint.
            self.z, self.values = new_z, new
            self.s = new_s
            self.dual = np.where(stay[:, None], self.dual, np.maximum(dual, 1e-300))
            self.force = np.where(stay[:, None], self.force, force)


def _pull(A: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`Aᵀ v` of each lane."""
    return np.einsum("bij,bi->bj", A, v)


def _to_boundary(s: np.ndarray, ds: np.ndarray) -> np.ndarray:
    """The longest step in (0, 1] that keeps s positive."""
    if s.shape[1] == 0:
        return np.ones(len(s))
    ratio = np.where(ds < 0, -0.995 * s / np.where(ds < 0, ds, -1), np.inf)
    return np.minimum(1, np.nan_to_num(ratio, nan=1e-3).min(1))


def _solve(H, E, right, below):
    """`[H Eᵀ; E 0] (d, m) = (right, below)` with H made positive definite."""
    H, right = np.clip(np.nan_to_num(H), -1e14, 1e14), np.clip(np.nan_to_num(right), -1e14, 1e14)
    e, Q = np.linalg.eigh((H + np.swapaxes(H, 1, 2)) / 2)
    floor = 1e-9 * np.maximum(1, np.abs(e).max(1, initial=0, keepdims=True) * 1e-4)
    inverse = 1 / np.maximum(np.abs(e), floor)

    def apply(v):  # H⁻¹ v
        return np.einsum("bij,bj,bkj,bk->bi", Q, inverse, Q, v, optimize=True)

    if E.shape[1] == 0:
        return apply(right), np.zeros((len(H), 0))
    E, below = np.clip(np.nan_to_num(E), -1e8, 1e8), np.clip(np.nan_to_num(below), -1e8, 1e8)
    EH = np.einsum("bki,bij,bj->bkj", E, Q, inverse, optimize=True)
    EH = np.einsum("bkj,bij->bki", EH, Q)  # E H⁻¹
    S = EH @ np.swapaxes(E, 1, 2)
    S = S + 1e-12 * (1 + np.abs(S).max(axis=(1, 2), keepdims=True)) * np.eye(S.shape[1])
    wanted = np.einsum("bki,bi->bk", EH, right) - below
    force = np.linalg.solve(S, wanted[:, :, None])[:, :, 0]
    return apply(right - _pull(E, force)), force
