"""The lower problem with a logarithmic barrier in place of its inequalities."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, positive
from bilevel.linear import Equations
from bilevel.lower import kkt
from bilevel.lower.solvers import AbstractLowerSolver, LowerSolution
from bilevel.problem import Problem
from bilevel.sets import AbstractSet, Constraints, Free
from bilevel.typing import Scalar

Vector = Float[Array, " m"]


class LogBarrier(AbstractLowerSolver):
    """Minimises `g_t(y) = g(x, y) − t Σ log(−h_i(x, y))` over `E y = d`, to rounding.

    Damped Newton steps from a strictly feasible point, with strict feasibility and Armijo's
    condition kept at every one. t/(−h_i) tends to the multipliers of the constraints; where g and
    the h_i are convex, g at the result is within `k t` of its minimum, k the number of
    inequalities. Made for g and h_i convex in y, g strongly or with constraints that hold y in
    every direction (a linear program), and a lower set with an interior. Every step forms and
    factorises the Hessian: y up to a few hundred entries.

    From y0 outside, a first phase looks for the interior: it minimises
    `s/τ + ½ ‖y − y0‖² − Σ log(s − h_i)` over (y, s), with τ a tenth each round, until s > h_i
    fits below zero; y is NaN when none does, for want of an interior. From y0 far from the
    minimiser, t is reached from larger ones. The solution's `duals` are t/(−h_i), and those of the
    equations; its residual is the norm of ∇_y of `g_t + νᵀe` and of e; its steps those of Newton.

    Attributes:
        t: weight of the barrier.
        max_steps: of Newton, at most, in each of the two phases.

    Reference: Boyd, Vandenberghe. "Convex optimization", chapters 10 and 11. Cambridge University
    Press 2004.
    """

    t: ScalarLike = positive(1e-4)
    max_steps: int = count(200)

    def solve(self, problem, x, y0, batch=None) -> LowerSolution:
        bound, y0 = equations_of(problem.lower_set), trees.copy(y0)
        equations = Equations.of(bound, y0, x)
        start, unravel = trees.ravel(bound.project(y0, x))
        t = jnp.asarray(self.t, start.dtype)

        def inequalities(y: Vector) -> Vector:
            return _stacked(finite(problem.lower_set.constraints(unravel(y), x).inequalities), y)

        def value(y: Vector, t: Scalar) -> Scalar:
            return oracles.lower_value(with_barrier(problem, t), x, unravel(y), batch)

        def slope(y: Vector, t: Scalar) -> Vector:
            return trees.ravel(oracles.lower_grad(with_barrier(problem, t), x, unravel(y), batch))[
                0
            ]

        def hessian(y: Vector, t: Scalar) -> Array:
            return oracles.dense_hessian(with_barrier(problem, t), x, unravel(y), batch)

        inside = _interior(inequalities, start, equations, self.max_steps)
        first = _weight(slope, inside.y, equations, t)
        aim = _Aim(value, slope, hessian, lambda y: jnp.all(inequalities(y) < 0), _never)
        end = _follow(aim, inside.y, equations, first, t, self.max_steps)

        y = unravel(jnp.where(inside.found, end.y, jnp.nan))
        steepest = slope(end.y, t)
        h, e = kkt.constraints(problem, x, y)
        duals = kkt.Duals(t / -h, equations.multiplier(steepest))
        residual = trees.norm((equations.tangent(steepest), e))
        return LowerSolution(y, residual, inside.steps + end.steps, duals)


class _Barred(eqx.Module):
    lower: Callable
    lower_set: AbstractSet
    t: ScalarLike

    def __call__(self, x, y, batch) -> Scalar:
        g, h = self.lower(x, y, batch), finite(self.lower_set.constraints(y, x).inequalities)
        logs = sum((jnp.sum(jnp.log(-h_i)).astype(g.dtype) for h_i in jax.tree.leaves(h)), 0 * g)
        return g - jnp.asarray(self.t, g.dtype) * logs


def with_barrier(problem: Problem, t: ScalarLike) -> Problem:
    """The problem whose lower loss is `g_t = g − t Σ log(−h_i)`, under the equations alone.

    Its lower solution is y_t(x), its hyper-objective `l_t(x) = f(x, y_t(x))`.
    """
    return problem.replace(
        lower=_Barred(problem.lower, problem.lower_set, jnp.asarray(t)),
        lower_set=equations_of(problem.lower_set),
    )


class _OnlyEquations(AbstractSet):
    """The linear equations of another set."""

    whole: AbstractSet

    def traits(self):
        return self.whole.traits()._replace(projectable=True, linear=True, inequalities=False)

    def project(self, z, x=None):
        E, d = self.rows(z, x)[2:]
        vector, unravel = trees.ravel(z)
        return unravel(vector - jnp.linalg.pinv(E) @ (E @ vector - d))

    def constraints(self, z, x=None):
        return Constraints((), self.whole.constraints(z, x).equalities)


def equations_of(a_set: AbstractSet) -> AbstractSet:
    """The set without its inequalities."""
    return _OnlyEquations(a_set) if a_set.traits().equalities else Free()


def finite(inequalities: PyTree[Array]) -> PyTree[Array]:
    """The values of inequalities, with −1 where a side is open: no value, no derivative."""
    return trees.map(lambda h: jnp.where(jnp.isneginf(h), -jnp.ones_like(h), h), inequalities)


# --- Newton's method along the central path -------------------------------------------------------


class _Aim(NamedTuple):
    """What is minimised, for every weight t of the barrier."""

    value: Callable[[Vector, Scalar], Scalar]
    slope: Callable[[Vector, Scalar], Vector]
    hessian: Callable[[Vector, Scalar], Float[Array, "m m"]]
    inside: Callable[[Vector], Bool[Array, ""]]
    enough: Callable[[Vector], Bool[Array, ""]]  # near the central path, an early end


class _Path(NamedTuple):
    y: Vector
    t: Scalar
    decrement: Scalar  # dᵀ H d, twice the decrease that the Newton step d promises
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def _never(y: Vector) -> Bool[Array, ""]:
    return jnp.asarray(False)


def _follow(
    aim: _Aim, y: Vector, equations: Equations, first: Scalar, last: Scalar, max_steps: int
) -> _Path:
    """Damped Newton steps from a point inside; t falls tenfold each time y is near the path."""
    eps = jnp.finfo(y.dtype).eps
    step = _newton_step(equations)

    def body(at: _Path) -> _Path:
        slope = equations.tangent(aim.slope(at.y, at.t))
        d = step(aim.hessian(at.y, at.t), slope)
        here, decrement = aim.value(at.y, at.t), -slope @ d
        scale = 1 + jnp.abs(here)

        def fits(a: Scalar) -> Bool[Array, ""]:
            there = aim.value(at.y + a * d, at.t)
            armijo = there <= here - 1e-4 * a * decrement + 10 * eps * scale
            return aim.inside(at.y + a * d) & armijo

        one = jnp.ones_like(at.t)
        a = jax.lax.while_loop(lambda a: ~fits(a) & (a > 2.0**-60), lambda a: a / 2, one)
        found = a > 2.0**-60

        near = decrement <= 0.1 * at.t
        exact = decrement <= 2e5 * eps**2 * scale
        stale = (decrement <= 100 * eps * scale) & (decrement >= at.decrement / 4)
        ends = (at.t <= last) & (exact | stale | ~found)
        return _Path(
            y=jnp.where(found, at.y + a * d, at.y),
            t=jnp.where(near | ~found, jnp.maximum(at.t / 10, last), at.t),
            decrement=jnp.where(near & (at.t > last), jnp.inf, decrement),
            steps=at.steps + 1,
            done=ends | (near & aim.enough(at.y)) | ~jnp.isfinite(decrement),
        )

    none = jnp.zeros((), jnp.int32)
    start = _Path(y, first, jnp.full((), jnp.inf, y.dtype), none, aim.enough(y))
    return jax.lax.while_loop(lambda at: ~at.done & (at.steps < max_steps), body, start)


def _newton_step(equations: Equations) -> Callable[[Array, Vector], Vector]:
    """`(H, slope) ↦ −H⁻¹ slope` on the null space of the equations."""
    E, inverse = equations
    if not E.shape[0]:
        return lambda H, slope: -jnp.linalg.solve(H, slope)
    P = jnp.eye(E.shape[1], dtype=E.dtype) - inverse @ E

    def step(H: Array, slope: Vector) -> Vector:
        across = jnp.max(jnp.abs(H)) * (inverse @ E)  # of the size of H, for a good condition
        return -P @ jnp.linalg.solve(P @ H @ P + across, slope)

    return step


class _Inside(NamedTuple):
    y: Vector
    found: Bool[Array, ""]
    steps: Int[Array, ""]


def _interior(inequalities, y0: Vector, equations: Equations, max_steps: int) -> _Inside:
    """A strictly feasible point near the path of `s + t (½ ‖y − y0‖² − Σ log(s − h(y)))`."""

    def value(z: Vector, t: Scalar) -> Scalar:
        y, s = z[:-1], z[-1]
        return s + t * (jnp.sum((y - y0) ** 2) / 2 - jnp.sum(jnp.log(s - inequalities(y))))

    def strictly(z: Vector) -> Bool[Array, ""]:
        return jnp.all(inequalities(z[:-1]) < -jnp.finfo(z.dtype).eps)

    def below(z: Vector) -> Bool[Array, ""]:
        return jnp.all(inequalities(z[:-1]) < z[-1])

    aim = _Aim(value, jax.grad(value), jax.hessian(value), below, strictly)
    z0 = jnp.append(y0, jnp.max(inequalities(y0), initial=-1.0) + 1)
    first = jnp.ones((), y0.dtype)
    last = 1e3 * jnp.finfo(y0.dtype).eps * first
    end = _follow(aim, z0, _beside(equations), first, last, max_steps)
    return _Inside(end.y[:-1], strictly(end.y), end.steps)


def _beside(equations: Equations) -> Equations:
    """The same equations over one more entry."""
    E, inverse = equations
    return Equations(jnp.pad(E, ((0, 0), (0, 1))), jnp.pad(inverse, ((0, 1), (0, 0))))


def _weight(slope, y: Vector, equations: Equations, t: Scalar) -> Scalar:
    """The weight whose central path passes nearest to y, or t where that is larger."""
    g_y = equations.tangent(slope(y, jnp.zeros_like(t)))
    b_y = equations.tangent(slope(y, jnp.ones_like(t))) - g_y
    nearest = -(g_y @ b_y) / (b_y @ b_y)
    most = jnp.linalg.norm(g_y) * (1 + jnp.linalg.norm(y))  # where b_y is next to zero
    return jnp.where(nearest > t, jnp.maximum(jnp.minimum(nearest, most), t), t)


def _stacked(tree: PyTree[Array], like: Array) -> Array:
    pieces = [jnp.ravel(leaf).astype(like.dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, like.dtype), *pieces])
