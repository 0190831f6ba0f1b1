"""Deterministic solvers of the lower problem on one batch."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.problem import Problem
from bilevel.typing import Lower, Scalar
from bilevel.updates import AbstractUpdate, as_update


class LowerSolution(NamedTuple):
    """A lower iterate and how good it is."""

    y: Lower
    residual: Scalar  # ‖∇_y g(x, y)‖; with a lower_set, of the projected-gradient map
    steps: Int[Array, ""] | int


class AbstractLowerSolver(eqx.Module):
    """Minimises `g(x, ·)` from a starting point."""

    @abc.abstractmethod
    def solve(self, problem: Problem, x, y0: Lower, batch=None) -> LowerSolution: ...


def residual(problem: Problem, x, y, batch) -> Scalar:
    """`‖y − P_Y(y − ∇_y g)‖`: the gradient norm when there is no lower set."""
    g_y = oracles.lower_grad(problem, x, y, batch)
    return trees.norm(trees.sub(y, problem.lower_set.project(trees.sub(y, g_y), x)))


class Gradient(AbstractLowerSolver):
    """A fixed number of (projected) steps with any update; differentiable in both modes."""

    update: AbstractUpdate = eqx.field(converter=as_update)
    steps: int = eqx.field(static=True, default=100)

    def solve(self, problem, x, y0, batch=None):
        def body(carry, k):
            y, memory = carry
            g_y = oracles.lower_grad(problem, x, y, batch)
            y, memory = self.update.step(g_y, memory, y, k)
            return (problem.lower_set.project(y, x), memory), None

        start = (y0, self.update.init(y0))
        (y, _), _ = jax.lax.scan(body, start, jnp.arange(self.steps))
        return LowerSolution(y, residual(problem, x, y, batch), self.steps)


class Accelerated(AbstractLowerSolver):
    """Nesterov's method for `μ`-strongly convex, `L`-smooth losses, a fixed number of steps.

    Step 1/L and momentum `(√κ − 1)/(√κ + 1)`; the error shrinks by `1 − 1/√κ` a step.
    """

    smoothness: ScalarLike = eqx.field(converter=jnp.asarray)  # L
    convexity: ScalarLike = eqx.field(converter=jnp.asarray)  # μ
    steps: int = eqx.field(static=True, default=100)

    def solve(self, problem, x, y0, batch=None):
        root = jnp.sqrt(self.smoothness / self.convexity)
        momentum = (root - 1) / (root + 1)

        def body(carry, _):
            y, ahead = carry
            g_y = oracles.lower_grad(problem, x, ahead, batch)
            new = problem.lower_set.project(trees.axpy(-1 / self.smoothness, g_y, ahead), x)
            return (new, trees.axpy(momentum, trees.sub(new, y), new)), None

        (y, _), _ = jax.lax.scan(body, (y0, y0), None, length=self.steps)
        return LowerSolution(y, residual(problem, x, y, batch), self.steps)


class ToTolerance(AbstractLowerSolver):
    """Accelerated gradient with backtracking and restarts, until `‖∇_y g‖ ≤ tol`.

    Needs no constants: the step is halved until the loss decreases enough, and momentum restarts
    whenever it points uphill. Stops, too, when `patience` steps have brought no better residual,
    which is how a tolerance below rounding ends. With a μ-strongly convex loss the result is within `tol/μ` of the
    minimiser. A loop of unknown length: differentiate through `argmin`, not through it.

    Reference: O'Donoghue, Candès. "Adaptive restart for accelerated gradient schemes". 2015,
    arXiv:1204.3982.
    """

    tol: ScalarLike = eqx.field(converter=jnp.asarray, default=1e-8)
    max_steps: int = eqx.field(static=True, default=10_000)
    first_step: ScalarLike = eqx.field(converter=jnp.asarray, default=1.0)
    patience: int = eqx.field(static=True, default=200)

    def solve(self, problem, x, y0, batch=None):
        dtype = trees.widest(y0)
        tol = jnp.asarray(self.tol, dtype)

        def value(y):
            return oracles.lower_value(problem, x, y, batch)

        def body(at):
            ahead = trees.axpy((at.t - 1) / (at.t + 2), trees.sub(at.y, at.last), at.y)
            f_ahead, grad = jax.value_and_grad(value)(ahead)

            def trial(step):
                new = problem.lower_set.project(trees.axpy(-step, grad, ahead), x)
                move = trees.sub(new, ahead)
                bound = f_ahead + trees.dot(grad, move) + trees.dot(move, move) / (2 * step)
                slack = 10 * jnp.finfo(dtype).eps * jnp.abs(f_ahead)
                return new, move, value(new) > bound + slack

            step = jax.lax.while_loop(
                lambda step: trial(step)[2] & (step > 4 * jnp.finfo(dtype).tiny),
                lambda step: step / 2,
                1.1 * at.step,
            )
            new, move, _ = trial(step)
            uphill = trees.dot(move, trees.sub(new, at.y)) < 0
            size = residual(problem, x, new, batch).astype(dtype)
            better = size < at.best
            return _Search(
                y=new,
                last=trees.where(uphill, new, at.y),
                t=jnp.where(uphill, jnp.ones_like(at.t), at.t + 1),
                step=step,
                size=size,
                best=jnp.minimum(size, at.best),
                steps=at.steps + 1,
                stale=jnp.where(better, jnp.zeros_like(at.stale), at.stale + 1),
            )

        def unfinished(at):
            return (
                (at.steps < self.max_steps)
                & (at.size > tol)
                & (at.stale < self.patience)
                & jnp.isfinite(at.size)
            )

        y0 = trees.copy(y0)
        size = residual(problem, x, y0, batch).astype(dtype)
        none = jnp.zeros((), jnp.int32)
        first_step = jnp.asarray(self.first_step, dtype)
        start = _Search(y0, y0, jnp.ones((), dtype), first_step, size, size, none, none)
        end = jax.lax.while_loop(unfinished, body, start)
        return LowerSolution(end.y, end.size, end.steps)


class _Search(NamedTuple):
    y: Lower
    last: Lower  # the iterate before
    t: Scalar  # steps since momentum restarted
    step: Scalar
    size: Scalar  # residual at y
    best: Scalar  # smallest residual so far
    steps: Int[Array, ""]
    stale: Int[Array, ""]  # steps since the residual was best


class Optimistix(AbstractLowerSolver):
    """Any `optimistix` minimiser (BFGS, Newton-like, nonlinear CG, ...).

    Needs the extra `bilevel[solvers]`. Constraints on y are not seen by it.
    """

    minimiser: Any
    max_steps: int = eqx.field(static=True, default=1000)

    def solve(self, problem, x, y0, batch=None):
        try:
            import optimistix
        except ImportError as error:
            raise ImportError(
                "lower.Optimistix needs optimistix: pip install 'bilevel[solvers]'"
            ) from error

        def value(y, _):
            return oracles.lower_value(problem, x, y, batch)

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found = optimistix.minimise(
                value, self.minimiser, y0, max_steps=self.max_steps, throw=False
            )
        steps = found.stats["num_steps"]
        return LowerSolution(found.value, residual(problem, x, found.value, batch), steps)
