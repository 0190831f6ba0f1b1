"""Deterministic solvers of the lower problem on one batch."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import Checked, count, nonnegative, positive
from bilevel.lower.kkt import Duals
from bilevel.problem import Problem
from bilevel.sets import Free
from bilevel.typing import Lower, Scalar
from bilevel.updates import AbstractUpdate, as_update


class LowerSolution(NamedTuple):
    """A lower iterate and how good it is."""

    y: Lower
    residual: Scalar  # ‖∇_y g(x, y)‖; with a lower_set, of the projected-gradient map, or of the
    # KKT conditions from solvers that find multipliers
    steps: Int[Array, ""] | int
    duals: Duals | None = None  # multipliers of the lower_set, from solvers that find them
    active: Bool[Array, " k"] | None = None  # which of its inequalities are active, likewise


class AbstractLowerSolver(Checked):
    """Minimises `g(x, ·)` from a starting point."""

    @abc.abstractmethod
    def solve(self, problem: Problem, x, y0: Lower, batch=None) -> LowerSolution:
        """The iterate reached from y0, its residual and the steps it took.

        Args:
            y0: where to start; gives y its structure and dtypes.
            batch: handed to the lower loss untouched.
        """


def residual(problem: Problem, x, y, batch) -> Scalar:
    """`‖y − P_Y(y − ∇_y g)‖`: the gradient norm when there is no lower set.

    With a set it cannot fall below the rounding of y itself, `eps ‖y‖`.
    """
    return residual_of(problem, x, y, oracles.lower_grad(problem, x, y, batch))


def residual_of(problem: Problem, x, y, g_y) -> Scalar:
    """The residual at y, from the gradient there."""
    if isinstance(problem.lower_set, Free):
        return trees.norm(g_y)
    return trees.norm(trees.sub(y, problem.lower_set.project(trees.sub(y, g_y), x)))


class Gradient(AbstractLowerSolver):
    """A fixed number of (projected) steps with any update; differentiable in both modes."""

    update: AbstractUpdate = eqx.field(converter=as_update)
    steps: int = count(100)

    def solve(self, problem, x, y0, batch=None):
        def body(carry, k):
            y, memory = carry
            g_y = oracles.lower_grad(problem, x, y, batch)
            y, memory = self.update.step(g_y, memory, y, k)
            return (problem.lower_set.project(y, x), memory), None

        y0 = trees.cast_like(y0, y0)  # Python numbers become arrays
        start = (y0, self.update.init(y0))
        (y, _), _ = jax.lax.scan(body, start, jnp.arange(self.steps))
        return LowerSolution(y, residual(problem, x, y, batch), self.steps)


class Accelerated(AbstractLowerSolver):
    """Nesterov's method for `μ`-strongly convex, `L`-smooth losses, a fixed number of steps.

    Step 1/L and momentum `(√κ − 1)/(√κ + 1)`; the gap of the loss shrinks by `1 − 1/√κ` a step.
    """

    smoothness: ScalarLike = nonnegative()  # L
    convexity: ScalarLike = nonnegative()  # μ
    steps: int = count(100)

    def solve(self, problem, x, y0, batch=None):
        dtype = jnp.result_type(float)
        smoothness = jnp.asarray(self.smoothness, dtype)
        root = jnp.sqrt(smoothness / jnp.asarray(self.convexity, dtype))
        momentum = (root - 1) / (root + 1)

        def body(carry, _):
            y, ahead = carry
            g_y = oracles.lower_grad(problem, x, ahead, batch)
            new = problem.lower_set.project(trees.axpy(-1 / smoothness, g_y, ahead), x)
            return (new, trees.axpy(momentum, trees.sub(new, y), new)), None

        y0 = trees.cast_like(y0, y0)  # Python numbers become arrays
        (y, _), _ = jax.lax.scan(body, (y0, y0), None, length=self.steps)
        return LowerSolution(y, residual(problem, x, y, batch), self.steps)


class ToTolerance(AbstractLowerSolver):
    """Accelerated gradient with backtracking and restarts, until `‖∇_y g‖ ≤ tol`.

    Needs no constants: the step is halved until it suits the curvature it meets, does not raise the
    loss and stays where the loss is finite; momentum restarts whenever it points uphill or out of
    that domain. Ends, too, when rounding lets `patience` steps pass without a better residual, or
    when no step is short enough, and returns the best iterate. With a μ-strongly convex loss that
    is within `residual/μ` of the minimiser. Two gradients a step, and one more for each halving. A
    loop of unknown length: differentiate through `argmin`, not through it.

    Attributes:
        tol: bound on the residual, a norm over all of y.
        first_step: the first step size tried; from there it grows by a tenth a step.
        max_steps: it stops there, and returns the best iterate.

    Reference: O'Donoghue, Candès. "Adaptive restart for accelerated gradient schemes". 2015,
    arXiv:1204.3982.
    """

    tol: ScalarLike = nonnegative(1e-8)
    max_steps: int = count(10_000)
    first_step: ScalarLike = positive(1.0)
    patience: int = count(200, least=0)

    def solve(self, problem, x, y0, batch=None):
        y0 = trees.copy(y0)
        dtype = trees.widest(y0)
        tol = jnp.asarray(self.tol, dtype)

        def look(y) -> _Look:
            value, g_y = oracles.lower_value_and_grad(problem, x, y, batch)
            return _Look(y, value.astype(dtype), g_y)

        def residual_at(at: _Look):
            return residual_of(problem, x, at.y, at.g_y).astype(dtype)

        def body(at: _Search) -> _Search:
            here = at.here
            ahead = look(trees.axpy((at.t - 1) / (at.t + 2), trees.sub(here.y, at.last), here.y))
            inside = ahead.is_finite()
            ahead, t = trees.where(inside, ahead, here), jnp.where(inside, at.t, 1)

            def attempt(step) -> _Attempt:
                new = look(problem.lower_set.project(trees.axpy(-step, ahead.g_y, ahead.y), x))
                move = trees.sub(new.y, ahead.y)
                # Curvature along the move: exact on quadratics, and unlike a comparison of values
                # it does not drown in rounding near the minimiser. Where the loss is convex it
                # never rises on a move that suits the curvature.
                curvature = trees.dot(move, trees.sub(new.g_y, ahead.g_y))
                suits = curvature * step <= trees.dot(move, move)
                slope = trees.dot(move, ahead.g_y).astype(dtype)
                foreseen = (
                    slope + (trees.dot(move, move) / step).astype(dtype) + jnp.abs(slope) / 10
                )
                sizes = jnp.abs(jnp.stack([new.value, ahead.value, start.value]))
                blur = 1000 * jnp.finfo(dtype).eps * jnp.max(sizes)
                rises = new.value - ahead.value > foreseen + blur
                return _Attempt(step, new, suits & ~rises & new.is_finite())

            smallest = at.step * jnp.asarray(2.0**-60, dtype)
            tried = jax.lax.while_loop(
                lambda tried: ~tried.fits & (tried.step > smallest),
                lambda tried: attempt(tried.step / 2),
                attempt(1.1 * at.step),
            )
            new, last = tried.new, here.y
            uphill = trees.dot(trees.sub(new.y, ahead.y), trees.sub(new.y, last)) < 0
            size = residual_at(new)
            better = (size < at.best_size) & new.is_finite()
            # Rounding of a gradient is about eps · L‖y‖, or eps times what it was at the start.
            rounding = jnp.finfo(dtype).eps * (trees.norm(new.y) / tried.step + start_size)
            waits = (size < 1000 * rounding) & ~better
            return _Search(
                here=new,
                last=trees.where(uphill, new.y, last),
                best=trees.where(better, new.y, at.best),
                t=jnp.where(uphill, jnp.ones_like(t), t + 1),
                step=tried.step,
                size=size,
                best_size=jnp.where(better, size, at.best_size),
                steps=at.steps + 1,
                stale=jnp.where(waits, at.stale + 1, jnp.zeros_like(at.stale)),
            )

        def unfinished(at: _Search):
            return (
                (at.steps < self.max_steps)
                & (at.best_size > tol)
                & (at.stale < self.patience)
                & (at.here.is_finite() | (at.steps == 0))  # a projection may lead into the domain
            )

        start = look(y0)
        start_size = jnp.where(start.is_finite(), residual_at(start), jnp.inf)
        none = jnp.zeros((), jnp.int32)
        first_step = jnp.asarray(self.first_step, dtype)
        one = jnp.ones((), dtype)
        first = _Search(start, y0, y0, one, first_step, start_size, start_size, none, none)
        end = jax.lax.while_loop(unfinished, body, first)
        return LowerSolution(end.best, end.best_size, end.steps)


class _Look(NamedTuple):
    """A lower point, and the loss and its gradient there."""

    y: Lower
    value: Scalar
    g_y: Lower

    def is_finite(self) -> Bool[Array, ""]:
        """Whether the point is in the domain of the loss."""
        return jnp.isfinite(self.value) & trees.all_finite(self.g_y)


class _Attempt(NamedTuple):
    step: Scalar
    new: _Look
    fits: Bool[Array, ""]  # suits the curvature, raises nothing, stays in the domain


class _Search(NamedTuple):
    here: _Look
    last: Lower  # the iterate before
    best: Lower  # the iterate of smallest residual so far
    t: Scalar  # steps since momentum restarted
    step: Scalar
    size: Scalar  # residual here
    best_size: Scalar  # residual at best
    steps: Int[Array, ""]
    stale: Int[Array, ""]  # steps near rounding since the residual was best


class Optimistix(AbstractLowerSolver):
    """Any `optimistix` minimiser (BFGS, Newton-like, nonlinear CG, ...).

    Needs the extra `bilevel[solvers]`. Constraints on y are not seen by it.

    Attributes:
        minimiser: for example `optimistix.BFGS(rtol=1e-8, atol=1e-8)`.
        max_steps: it stops there, converged or not.

    Raises:
        ImportError: optimistix is not installed.
    """

    minimiser: Any
    max_steps: int = count(1000)

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
