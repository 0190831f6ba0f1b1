"""Values, Jacobian and curvature of all functions of a small problem, at many points at once."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel import sets
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper

LANES = (4, 128)  # points of one call: two programs serve few and many
MANY = 1024  # points of one call for values alone
SHUT = -1.0  # the value of a row that is never active
UPPER, LOWER = 0, 1  # the rows of the two losses

Vector = np.ndarray  # z = (x, y), ravelled


class Values(NamedTuple):
    """At each point (a row): all functions, their derivatives, and one weighted Hessian."""

    c: np.ndarray  # points x functions
    J: np.ndarray  # points x functions x variables
    W: np.ndarray  # points x variables x variables, of Σ weights · c

    def at(self, which) -> "Values":
        """Of some points."""
        return Values(self.c[which], self.J[which], self.W[which])


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Double precision inside, whatever the session's setting."""
    home = "jax" if hasattr(jax, "enable_x64") else "jax.experimental"  # it moved
    with importlib.import_module(home).enable_x64(True):
        yield


class Functions:
    """The functions `F, f, G, H, g, h` of a problem as rows of one vector `c(z)`, `z = (x, y)`.

    Inequalities are `<= 0`, equations `= 0`. Rows that are infinite (an open side of a box) are
    left out, rows that repeat another too, and two linear rows that say `a <= 0` and `−a <= 0`
    become one equation. A loss that hardly moves near the start is divided by how much it does, so
    that one tolerance serves all.

    Attributes:
        n, m: entries of x and y.
        G, H, g, h: which rows are upper inequalities and equations, lower inequalities and
            equations.
        linear: which rows are linear in z.
        straight: which rows are linear in y at each x.
        bent: whether some Hessian of the lower loss in y moves with y.
        units: what the two losses are divided by.
        spread: how much the lower loss moves with y near the start, after that division.
        points: how many were evaluated so far.
    """

    def __init__(self, problem: Problem, x0: Upper, y0: Lower, batch: Batch = Batch()):
        with double_precision():
            problem, x0, y0 = jax.tree.map(_double, (problem, x0, y0))
            x, self.as_x = ravel_pytree(x0)
            y, self.as_y = ravel_pytree(y0)
            self.n, self.m = x.size, y.size
            self.z0 = np.concatenate([np.asarray(x), np.asarray(y)])
            sizes = []

            def every(z):
                x, y = self.as_x(z[: self.n]), self.as_y(z[self.n :])
                losses = problem.upper(x, y, batch.upper), problem.lower(x, y, batch.lower)
                blocks = *_upper(problem.upper_set, x, y), *_lower(problem.lower_set, x, y)
                sizes[:] = [2, *(block.size for block in blocks)]
                return jnp.concatenate([jnp.stack([jnp.ravel(v)[0] for v in losses]), *blocks])

            def evaluate(zw):  # one array in and one out: a transfer costs more than the numbers
                z, w = zw[: self.size], zw[self.size :]
                curvature = jax.jacfwd(jax.grad(lambda z: w @ every(z)))(z)
                parts = every(z), jax.jacfwd(every)(z), curvature
                return jnp.concatenate([jnp.ravel(part) for part in parts])

            self.points = 0
            self._rows = jax.eval_shape(every, self.z0).size
            self._evaluate = jax.jit(jax.vmap(evaluate))
            self._values = jax.jit(jax.vmap(every))
        self.units, self._open = np.ones(2), np.zeros(self._rows, bool)
        ends = np.cumsum(sizes)
        self.G, self.H, self.g, self.h = map(np.arange, ends[:-1], ends[1:])
        self._simplify()

    @property
    def size(self) -> int:
        """Entries of z."""
        return self.n + self.m

    def __call__(self, z: np.ndarray, weights: np.ndarray | None = None) -> Values:
        """At the rows of z."""
        weights = np.zeros((len(z), self._rows)) if weights is None else weights.copy()
        weights[:, :2] /= self.units
        self.points += len(z)
        lanes = next((n for n in LANES if n >= len(z)), LANES[-1])
        found = []
        with double_precision():
            for i in range(0, len(z), lanes):
                part = np.concatenate([z[i : i + lanes], weights[i : i + lanes]], 1)
                short = lanes - len(part)
                part = np.concatenate([part, np.repeat(part[-1:], short, 0)]) if short else part
                found.append(np.array(self._evaluate(part))[: lanes - short])
        flat = np.concatenate(found) if len(found) > 1 else found[0]
        k, n = self._rows, self.size
        c, J, W = np.split(flat, [k, k + k * n], axis=1)
        J = J.reshape(-1, k, n)
        J[:, self._open] = 0.0
        J[:, :2] /= self.units[:, None]
        return Values(self._scaled(c), J, W.reshape(-1, n, n))

    def values(self, z: np.ndarray) -> np.ndarray:
        """The functions alone at the rows of z, far cheaper than with their derivatives."""
        self.points += len(z)
        found = []
        with double_precision():
            for i in range(0, len(z), MANY):
                part = z[i : i + MANY]
                short = MANY - len(part)
                full = np.concatenate([part, np.repeat(part[-1:], short, 0)]) if short else part
                found.append(np.array(self._values(full))[: len(part)])
        return self._scaled(np.concatenate(found))

    def _scaled(self, c: np.ndarray) -> np.ndarray:
        c[:, self._open] = SHUT
        with np.errstate(over="ignore", invalid="ignore"):
            c[:, :2] /= self.units
        return c

    def scale(self, lower: np.ndarray) -> np.ndarray:
        """What a difference of lower losses (after division) is compared with."""
        with np.errstate(invalid="ignore"):
            size = np.minimum(1 / self.units[LOWER] + np.abs(lower), max(self.spread, 1.0))
            return size + 1e-7 * np.abs(np.nan_to_num(lower, posinf=0, neginf=0))

    def weights(self, count: int) -> np.ndarray:
        """Zeros, a row a point."""
        return np.zeros((count, self._rows))

    def violations(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Largest violation of an upper and of a lower constraint, at each row of values."""

        def worst(inequalities, equations):
            excess = np.concatenate(
                [np.zeros((len(c), 1)), c[:, inequalities], np.abs(c[:, equations])], 1
            )
            return np.where(np.isfinite(excess).all(1), excess.max(1), np.inf)

        return worst(self.G, self.H), worst(self.g, self.h)

    def _simplify(self) -> None:
        """Open rows go, repeated rows go, opposite linear rows become equations."""
        rng = np.random.default_rng(0)
        spread = rng.normal(size=(16, self.size)) * (1 + np.abs(self.z0))
        spread *= np.logspace(-1, 1, 16)[:, None]
        spread[0] = 0
        z = self.z0 + spread
        other = np.concatenate([z[:, : self.n], np.roll(z[:, self.n :], 5, 0)], 1)
        weights = self.weights(32)
        weights[:, LOWER] = 1.0
        c, J, W = self(np.concatenate([z, other]), weights)
        self._open = np.all(np.isneginf(c), axis=0)
        c[:, self._open], J[:, self._open] = SHUT, 0.0
        open_ = self._open
        scale = 1 + np.nanmax(np.abs(J), axis=(0, 2), initial=0)
        with np.errstate(invalid="ignore"):
            moved = np.abs(J - J[:1]).max(axis=(0, 2), initial=0)
            turned = np.abs(J[:16] - J[16:])[:, :, self.n :].max(axis=(0, 2), initial=0)
            H, apart = W[:, self.n :, self.n :], (z - other)[:, self.n :]
            bent = np.abs(H[:16] - H[16:]).max(initial=0)
            bent = bent / (1e-300 + np.nanmax(np.abs(H), initial=0))
            # A kink leaves Hessians as they are, and slopes that do not follow from them.
            slopes = J[:, LOWER, self.n :]
            follows = np.einsum("bij,bj->bi", H[:16], apart)
            kink = np.abs(slopes[:16] - slopes[16:] - follows).max(initial=0)
            kink = kink / (1e-300 + np.nanmax(np.abs(slopes), initial=0))
        finite = np.isfinite(J).all(axis=(0, 2))
        self.linear, self.straight = (
            finite & (moved <= 1e-9 * scale),
            finite & (turned <= 1e-9 * scale),
        )
        self.bent = not max(bent, kink) <= 1e-9
        c, J = c[:16], J[:16]
        self.units, self.spread = self._units(z, other)
        offsets = c[0] - J[0] @ self.z0
        rows = np.concatenate([J[0], offsets[:, None]], 1)

        def simplified(inequalities, equations):
            kept, equal = [], [k for k in equations if not open_[k]]
            for k in inequalities:
                if open_[k]:
                    continue
                if self.linear[k]:
                    same = [j for j in kept if self.linear[j] and _close(rows[j], rows[k])]
                    back = [j for j in kept if self.linear[j] and _close(rows[j], -rows[k])]
                    if same:
                        continue
                    if back:
                        kept.remove(back[0])
                        equal.append(back[0])
                        continue
                kept.append(k)
            return np.array(kept, int), self._independent(equal, rows)

        self.lower_rows = rows
        self.G, self.H = simplified(self.G, self.H)
        self.g, self.h = simplified(self.g, self.h)

    def _units(self, z: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
        """How much each loss moves near the start, at most 1; and the lower one after division."""
        both = self.values(np.concatenate([z, other]))[:, :2]
        with np.errstate(invalid="ignore"):
            by_y = np.abs(both[:16] - both[16:])
            upper, lower = np.abs(both[:, UPPER] - both[0, UPPER]), by_y[:, LOWER]
        sizes = [part[np.isfinite(part) & (part > 0)] for part in (upper, lower)]
        moves = np.array([np.median(part) if len(part) else 1.0 for part in sizes])
        units = np.clip(moves, 1e-30, 1.0)
        return units, float(moves[LOWER] / units[LOWER])

    def _independent(self, equations: list[int], rows: np.ndarray) -> np.ndarray:
        """Without linear equations that follow from the others."""
        kept: list[int] = []
        for k in equations:
            if self.linear[k]:
                before = [j for j in kept if self.linear[j]]
                matrix = rows[[*before, k]]
                if np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(matrix).max()) <= len(before):
                    continue
            kept.append(k)
        return np.array(kept, int)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-12, atol=1e-12))


def _double(leaf):
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if floating else leaf


def _flat(tree) -> jax.Array:
    leaves = [jnp.ravel(leaf).astype(jnp.float64) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, jnp.float64), *leaves])


def _lower(a_set: sets.AbstractSet, x: Upper, y: Lower) -> tuple[jax.Array, jax.Array]:
    inequalities, equations = a_set.constraints(y, x)
    return _flat(inequalities), _flat(equations)


def _upper(a_set: sets.AbstractSet, x: Upper, y: Lower) -> tuple[jax.Array, jax.Array]:
    """A set that moves ties x to y, and is asked as (y, x); the others hold x alone."""
    if isinstance(a_set, sets.Intersection):
        parts = [_upper(member, x, y) for member in a_set.sets]
        return _flat([p[0] for p in parts]), _flat([p[1] for p in parts])
    inequalities, equations = a_set.constraints(y, x) if a_set.moves else a_set.constraints(x)
    return _flat(inequalities), _flat(equations)
