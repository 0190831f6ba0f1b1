"""Lower solvers that stop at a residual: with a μ-strongly convex loss `‖y − y*‖ ≤ residual/μ`."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, nonnegative
from bilevel.linear.tolerance import conjugate
from bilevel.lower.solvers import AbstractLowerSolver, LowerSolution, residual_of
from bilevel.problem import RepeatedBatch
from bilevel.typing import Lower, Scalar
from bilevel.updates import AbstractUpdate, as_update

SLOW = 10  # steps of Newton's method in a row that gain less than a hundredth, which is rounding


def _in_domain(size: Scalar, value: Scalar) -> Scalar:
    """The size of a gradient; infinite where the loss is not finite."""
    return jnp.where(jnp.isfinite(value), size, jnp.inf)


class Descend(AbstractLowerSolver):
    """(Projected) steps of any update until `‖∇_y g‖ ≤ tol`: one gradient a step.

    `Descend(2 / (mu + L))` is gradient descent at its best step. Ends, too, when `patience` steps
    pass without a better residual, or after `max_steps`, and returns the best iterate.
    """

    update: AbstractUpdate = eqx.field(converter=as_update)
    tol: ScalarLike = nonnegative(1e-8)
    max_steps: int = count(10_000)
    patience: int = count(200, least=0)

    def solve(self, problem, x, y0, batch=None):
        def measured(y):
            value, g_y = oracles.lower_value_and_grad(problem, x, y, batch)
            return g_y, _in_domain(residual_of(problem, x, y, g_y), value)

        def body(at: _Descent) -> _Descent:
            y, memory = self.update.step(at.g_y, at.memory, at.y, at.steps)
            y = problem.lower_set.project(y, x)
            g_y, size = measured(y)
            better = size < at.best_size
            best, best_size = trees.where(better, y, at.best), jnp.minimum(size, at.best_size)
            stale = jnp.where(better, 0, at.stale + 1)
            return _Descent(y, memory, g_y, best, best_size, at.steps + 1, stale)

        def unfinished(at: _Descent):
            tol = jnp.asarray(self.tol, at.best_size.dtype)
            return (at.best_size > tol) & (at.steps < self.max_steps) & (at.stale < self.patience)

        y0 = trees.copy(y0)
        g_y, size = measured(y0)
        none = jnp.zeros((), jnp.int32)
        start = _Descent(y0, self.update.init(y0), g_y, y0, size, none, none)
        end = jax.lax.while_loop(unfinished, body, start)
        return LowerSolution(end.best, end.best_size, end.steps)


class _Descent(NamedTuple):
    y: Lower
    memory: Any
    g_y: Lower
    best: Lower  # the iterate of smallest residual so far
    best_size: Scalar
    steps: Int[Array, ""]
    stale: Int[Array, ""]  # steps since then


class NewtonCG(AbstractLowerSolver):
    """Newton's method with conjugate gradients inside, until `‖∇_y g‖ ≤ tol`. Needs no constants.

    A step solves `H d = −∇_y g` no further than pays off, and is halved until the loss is finite
    and the gradient shorter, which a short enough step always is when the loss is strongly convex:
    so it comes home from afar, and converges superlinearly near the minimiser. Of a quadratic it is
    little more than one run of conjugate gradients. Ends, too, when no step shortens the gradient
    any more, or ten in a row hardly do, which is rounding. `steps` counts the gradients at new
    points and the products with H, and is at most about `max_steps`.
    Constraints on y are not seen by it. Not differentiable in reverse mode.

    Attributes:
        tol: bound on the residual, a norm over all of y.
        forcing: relative accuracy of the first linear solve, and the worst of the later ones.

    Reference: Eisenstat, Walker. "Choosing the forcing terms in an inexact Newton method". SIAM J.
    Sci. Comput. 17(1), 1996.
    """

    tol: ScalarLike = nonnegative(1e-8)
    max_steps: int = count(10_000)
    forcing: ScalarLike = nonnegative(0.1)

    def solve(self, problem, x, y0, batch=None):
        y0 = trees.copy(y0)
        dtype = trees.widest(y0)
        tol, loosest = jnp.asarray(self.tol, dtype), jnp.asarray(self.forcing, dtype)

        def gradient(y):
            value, g_y = oracles.lower_value_and_grad(problem, x, y, batch)
            return g_y, _in_domain(trees.norm(g_y).astype(dtype), value)

        def body(at: _Newton) -> _Newton:
            product = oracles.hessian(problem, x, at.y, RepeatedBatch(batch))
            d = conjugate(
                lambda v: trees.cast_like(product(trees.cast_like(v, y0)), v),
                trees.scale(-1.0, at.g_y),
                None,
                jnp.maximum(at.forcing * at.size, tol / 2),
                jnp.minimum(self.max_steps - at.steps, 5 * trees.size(y0) + 100),
            )

            def attempt(t) -> _Trial:
                y = trees.axpy(t, d.v, at.y)
                g_y, size = gradient(y)
                shorter = size <= (1 - jnp.asarray(1e-4, dtype) * t) * at.size
                return _Trial(t, y, g_y, size, shorter, jnp.ones((), jnp.int32))

            def again(tried: _Trial) -> _Trial:
                return attempt(tried.t / 2)._replace(halvings=tried.halvings + 1)

            tried = jax.lax.while_loop(
                lambda tried: ~tried.shorter & (tried.halvings < 30),
                again,
                attempt(jnp.ones((), dtype)),
            )
            kept = tried.shorter & (tried.size < at.size)
            slow = tried.size > 0.99 * at.size
            # How far the gradient is from what the linear model foretold.
            surprise = jnp.abs(tried.size - d.residual) / at.size
            return _Newton(
                y=trees.where(kept, tried.y, at.y),
                g_y=trees.where(kept, tried.g_y, at.g_y),
                size=jnp.where(kept, tried.size, at.size),
                forcing=jnp.minimum(surprise, loosest),
                steps=at.steps + d.steps + tried.halvings,
                moving=kept,
                slow=jnp.where(slow, at.slow + 1, jnp.zeros_like(at.slow)),
            )

        def unfinished(at: _Newton):
            going = at.moving & (at.slow < SLOW)
            return (at.size > tol) & (at.steps < self.max_steps) & going

        g_y, size = gradient(y0)
        none = jnp.zeros((), jnp.int32)
        start = _Newton(y0, g_y, size, loosest, none, jnp.isfinite(size), none)
        end = jax.lax.while_loop(unfinished, body, start)
        return LowerSolution(end.y, end.size, end.steps)


class _Newton(NamedTuple):
    y: Lower
    g_y: Lower
    size: Scalar  # ‖∇_y g‖
    forcing: Scalar
    steps: Int[Array, ""]
    moving: Bool[Array, ""]  # the last step shortened the gradient
    slow: Int[Array, ""]  # steps in a row that did so by less than a hundredth


class _Trial(NamedTuple):
    t: Scalar
    y: Lower
    g_y: Lower
    size: Scalar
    shorter: Bool[Array, ""]
    halvings: Int[Array, ""]
