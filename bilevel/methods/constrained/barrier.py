"""Barrier: gradient descent on the hyper-objective of a log-barrier lower level.

Jiang, Li, Hong, Zhang. "A barrier function approach for bilevel optimization with coupled
lower-level constraints: formulation, approximation and algorithms". 2024, arXiv:2410.10670.
Differs from the paper: the adaptive step rule is a reconstruction with the same aim, to adapt to
the local smoothness. As in the paper y is computed again after x has moved, so that the gradient
is that of `l_t`. In two of the three released experiments y is one step late.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import hypergrad, lower, oracles, trees
from bilevel.fields import NONNEGATIVE, count, nonnegative, optional
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class BarrierState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # y_t(x), strictly feasible
    step_size: Scalar  # the last accepted step size of the adaptive rule
    memory: Any  # memory of the x update, if there is one


class _Point(NamedTuple):
    x: Upper
    y: Lower  # y_t(x)
    value: Scalar  # l_t(x)
    residual: Scalar


class _Search(NamedTuple):
    x: Upper  # the candidate
    y: Lower  # where the solve for y starts; y_t(x) once accepted
    here: _Point  # the point at the start of the step
    grad: Upper  # of l_t there
    step_size: Scalar
    memory: Any
    tried: Int[Array, ""]
    newton_steps: Int[Array, ""]
    accepted: Bool[Array, ""]


class Barrier(AbstractMethod):
    """Gradient descent on `l_t(x) = f(x, y_t(x))`, y_t the minimiser of `g − t Σ log(−h_i)`.

    A step solves for y_t(x) by Newton's method to rounding level (`lower.LogBarrier`), moves x
    along the exact gradient of l_t (`hypergrad.barrier`), projects it, and solves for y again. Each
    solve takes about three to ten Hessians of g. y is strictly feasible at every step, and
    t/(−h_i) tends to the lower multipliers. Assumes a lower set with an interior at every x,
    inequalities convex in y and g strongly convex in y, or a linear program; linear equations are
    kept. As t → 0, l_t tends to l where l is continuous (the error is of order t or t²), but not
    at its jumps: there l_t has a slope of order 1/t, and its minimiser is at a distance of about
    √t.

    Deterministic: a step uses one batch. Without an `x_update` the step size adapts to the local
    smoothness. It is doubled, up to `max_step`, then halved until
    `l_t(x⁺) ≤ l_t(x) − ‖x⁺ − x‖²/(4 step)`, so l_t never increases while t is constant. x does not
    move if no step size satisfies this, or if the lower set has no interior. Where that decrease is
    below rounding for the longest step that can be taken, `info` says `settled` = 1, and `bl.solve`
    ends.

    Attributes:
        x_update: a step size, schedule or update; `None` is the adaptive rule (a reconstruction).
        t: weight of the barrier. A decreasing schedule gives the continuation method.
        max_step: largest step size of the adaptive rule.
        newton_steps: largest number of Newton steps in each solve for y.
    """

    x_update: AbstractUpdate | None = eqx.field(converter=optional(as_update), default=None)
    t: AbstractSchedule = eqx.field(default=1e-4, converter=as_schedule, metadata=NONNEGATIVE)
    max_step: ScalarLike = nonnegative(1.0)
    newton_steps: int = count(200)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, Hessian of y"
    rate: ClassVar[str] = "ε⁻¹ t^(−4.5)"
    paper: ClassVar[str] = "jiang2024barrier"
    status: ClassVar[str] = "experimental"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of a step accepted at once, with three Newton steps for the new y."""
        values = 0 if self.x_update is not None else 1
        return Price(
            upper_grad=1, upper_value=values, lower_value=10, lower_grad=10, dense_hessian=5
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BarrierState:
        x = problem.upper_set.project(trees.copy(x0))
        step_size = jnp.asarray(self.max_step, trees.widest((x0, y0)))
        memory = None if self.x_update is None else self.x_update.init(x)
        k = jnp.zeros((), jnp.int32)
        return trees.copy(BarrierState(k, x, trees.copy(y0), step_size, memory))

    def step(
        self, problem: Problem, state: BarrierState, batch: Batch
    ) -> tuple[BarrierState, dict[str, Scalar]]:
        t = self.t(state.k)
        x, y, zero, none = (
            state.x,
            state.y,
            jnp.zeros_like(state.step_size),
            jnp.zeros((), jnp.int32),
        )
        here, grad = _Point(x, y, zero, zero), trees.zeros_like(x)
        size, memory = state.step_size, state.memory
        start = _Search(x, y, here, grad, size, memory, none, none, jnp.asarray(False))

        def body(at: _Search) -> _Search:
            return self._tried(problem, state, batch, t, at)

        end = jax.lax.while_loop(lambda at: ~at.accepted & (at.tried < 60), body, start)
        moved = end.accepted
        adapts = jnp.asarray(self.x_update is None)
        new = BarrierState(
            state.k + 1,
            trees.where(moved, end.x, end.here.x),
            trees.where(moved, end.y, end.here.y),
            jnp.where(moved, end.step_size, state.step_size),
            end.memory,
        )
        info = {
            "upper": end.here.value,
            "hypergrad_norm": trees.norm(end.grad),
            "lower_grad_norm": end.here.residual,
            "t": t,
            "step_size": new.step_size,
            "newton_steps": end.newton_steps,
            "settled": (adapts & self._is_settled(state, end, t)).astype(size.dtype),
        }
        return new, info

    def _is_settled(self, state: BarrierState, end: _Search, t) -> Bool[Array, ""]:
        """Whether no step lowers l_t by more than rounding, and t stays as it is."""
        size = end.step_size
        longest = (end.tried > 2) | (size >= jnp.asarray(self.max_step, size.dtype))
        fall = _fall(end.x, end.here.x, size)
        none = ~end.accepted | (longest & (fall <= _rounding(end.here.value)))
        return none & jnp.isfinite(end.here.value) & (self.t(state.k + 1) >= t)

    def _tried(
        self, problem: Problem, state: BarrierState, batch: Batch, t, at: _Search
    ) -> _Search:
        """Solve for y at the candidate: first at x, for l_t and its gradient, then at the trial
        points, until l_t has decreased enough."""
        solver = lower.LogBarrier(t, self.newton_steps)
        found = solver.solve(problem, at.x, at.y, batch.lower)
        first, dtype = at.tried == 0, at.step_size.dtype

        def measured():
            h = hypergrad.barrier(problem, at.x, found.y, batch, t=t)
            return h.value.astype(dtype), h.grad

        def valued():
            f = oracles.upper_value(problem, at.x, found.y, batch.upper)
            return f.astype(dtype), at.grad

        value, grad = jax.lax.cond(first, measured, valued)
        point = _Point(at.x, found.y, value, found.residual.astype(dtype))
        here = trees.where(first, point, at.here)

        if self.x_update is None:
            enough = here.value - _fall(at.x, here.x, at.step_size) + _rounding(here.value)
            accepted = ~first & trees.all_finite(found.y) & (value <= enough)
            longest = jnp.minimum(2 * at.step_size, jnp.asarray(self.max_step, dtype))
            shorter = jnp.where(first, longest, at.step_size / 2)
            step_size, memory = jnp.where(accepted, at.step_size, shorter), at.memory
            ahead = trees.axpy(-step_size, grad, here.x)
        else:
            accepted, step_size = ~first, at.step_size
            ahead, memory = self.x_update.step(grad, state.memory, here.x, state.k)
        ahead = problem.upper_set.project(ahead)
        return _Search(
            trees.where(accepted, at.x, ahead),
            trees.where(accepted, found.y, here.y),
            here,
            grad,
            step_size,
            memory,
            at.tried + 1,
            at.newton_steps + found.steps,
            accepted,
        )


def _fall(x: Upper, before: Upper, step_size: Scalar) -> Scalar:
    """The decrease of l_t that a step must bring."""
    move = trees.sub(x, before)
    return trees.dot(move, move).astype(step_size.dtype) / (4 * step_size)


def _rounding(value: Scalar) -> Scalar:
    return 500 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))
