"""BVFSM: a sequence of smooth problems with a logarithmic barrier on the lower value gap.

Liu, Liu, Zeng, Zhang, Zhang. "Value-function-based sequential minimization for bi-level
optimization". IEEE TPAMI 2023, arXiv:2110.04974. Recalled, not checked against the text.
Differs from the released code: there x moves along `∇_x f + w (∇_x g(x, y) − ∇_x g(x, z))` with
`w = s/(v + n)`, n a constant, for any g(x, y), and the regularisers of z and y have separate
weights. Here `w = s/(v − g(x, y))`, kept finite by a line search on y, and one θ is used for both
regularisers and for the slack of v.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import lower, oracles, trees
from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import AbstractMethod, LowerAssumption, count
from bilevel.methods.penalty.value_gap import value_gap
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate, as_update


class BVFSMState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # minimises the upper loss with the barrier
    z: Lower  # follows the minimiser of the regularised lower loss
    update: Any  # memory of the x update


class Regularised(eqx.Module):
    """The lower loss `g(x, z) + ½ weight ‖z‖²`."""

    problem: Problem
    weight: Array

    def __call__(self, x, z, batch) -> Scalar:
        g = self.problem.lower(x, z, batch)
        return g + (self.weight * trees.dot(z, z) / 2).astype(g.dtype)


class BVFSM(AbstractMethod):
    """Interior-point descent on the upper loss over nearly optimal lower points: first order.

    θ and s go to zero. z takes `lower_steps` descent steps on `g + ½ θ ‖z‖²`, which gives the
    relaxed value `v = g(x, z) + ½ θ ‖z‖² + θ`. y takes `y_steps` descent steps on
    `f + ½ θ ‖y‖² − s log(v − g(x, y))`; each is halved until y is in the interior and the value
    decreases enough. x moves along `∇_x f + (s/(v − g(x, y))) (∇_x g(x, y) − ∇_x g(x, z))`.
    Deterministic: a step uses one batch. The lower loss may be nonconvex with many minimisers, as
    long as z finds a global one. The method converges to the optimistic solution, but slowly: the
    error is of order θ. Use it for a first search and refine the result with a penalty method.
    Only asymptotic convergence is known.

    Attributes:
        z_update: update of z, with step size at most `1/(L + θ)`.
        y_step: the first trial step of y.
        slack: θ, as a function of the step number k.
        barrier: s, as a function of the step number k.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=2e-2)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    y_step: AbstractSchedule = eqx.field(default=1.0, converter=as_schedule, metadata=NONNEGATIVE)
    slack: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(0.5, 1.0), metadata=NONNEGATIVE
    )
    barrier: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(0.1, 1.0), metadata=NONNEGATIVE
    )
    lower_steps: int = count(50, grows=True)
    y_steps: int = count(25)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.NONCONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y"
    paper: ClassVar[str] = "liu2023value"
    status: ClassVar[str] = "experimental"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls without the line searches, whose trials take a value of both losses."""
        steps = self.y_steps
        return Price(
            upper_value=steps,
            upper_grad_y=steps,
            upper_grad_x=1,
            lower_value=2 * steps + 4,
            lower_grad=self.lower_steps + steps + 2,
            lower_grad_x=2,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BVFSMState:
        x, y, z = trees.copy(x0), trees.copy(y0), trees.copy(y0)
        return BVFSMState(jnp.zeros((), jnp.int32), x, y, z, self.x_update.init(x))

    def step(
        self, problem: Problem, state: BVFSMState, batch: Batch
    ) -> tuple[BVFSMState, dict[str, Scalar]]:
        k, x, y, z, sx = state
        dtype = trees.widest((x, y))
        theta, s = self.slack(k).astype(dtype), self.barrier(k).astype(dtype)
        regular = problem.replace(lower=Regularised(problem, theta))
        descent = lower.Gradient(self.z_update, self.lower_steps)
        z = descent.solve(regular, x, z, batch.lower).y
        least = oracles.lower_value(problem, x, z, batch.lower).astype(dtype)
        value = least + theta * trees.dot(z, z) / 2 + theta

        def room(y):
            """`v − g(x, y)`, positive inside."""
            return value - oracles.lower_value(problem, x, y, batch.lower).astype(dtype)

        def slope(y, left):
            f_y = oracles.upper_grad_y(problem, x, y, batch.upper)
            g_y = oracles.lower_grad(problem, x, y, batch.lower)
            return trees.axpy(theta, y, trees.axpy(s / left, g_y, f_y))

        def inner(y) -> tuple[Scalar, Scalar]:
            """The inner objective, infinite outside, and `room(y)`."""
            left = room(y)
            f = oracles.upper_value(problem, x, y, batch.upper).astype(dtype)
            barred = -s * jnp.log(jnp.where(left > 0, left, 1))
            total = f + theta * trees.dot(y, y) / 2 + barred
            return jnp.where(left > 0, total, jnp.inf), left

        def search(carry, _):
            y, left, now = carry
            d = slope(y, left)
            y, left, now = _armijo(inner, y, left, now, d, self.y_step(k).astype(dtype))
            return (y, left, now), None

        y = trees.where(room(y) > 0, y, z)  # θ does not increase, so z is in the interior
        now, left = inner(y)
        (y, left, _), _ = jax.lax.scan(search, (y, left, now), length=self.y_steps)
        upper, f_x = oracles.upper_grad_x(problem, x, y, batch.upper)
        gap, (q_x, q_y) = value_gap(problem, x, y, z, batch.lower)
        d_x = trees.axpy(s / left, q_x, f_x)
        x, sx = self.x_update.step(d_x, sx, x, k)
        info = {
            "upper": upper,
            "hypergrad_norm": trees.norm(d_x),
            "lower_grad_norm": trees.norm(q_y),
            "lower_gap": gap,
        }
        return BVFSMState(k + 1, problem.upper_set.project(x), y, z, sx), info


class _Trial(NamedTuple):
    y: Lower
    left: Scalar
    value: Scalar
    step: Scalar
    falls: Array
    halvings: Array


def _armijo(inner, y: Lower, left: Scalar, now: Scalar, d: Lower, step: ScalarLike):
    """Backtracking along −d, until the value decreases by 1e-4 times the predicted decrease."""
    square = trees.dot(d, d).astype(now.dtype)

    def attempt(step, halvings) -> _Trial:
        there = trees.axpy(-step, d, y)
        value, room = inner(there)
        return _Trial(there, room, value, step, value <= now - 1e-4 * step * square, halvings)

    end = jax.lax.while_loop(
        lambda tried: ~tried.falls & (tried.halvings < 40),
        lambda tried: attempt(tried.step / 2, tried.halvings + 1),
        attempt(step, jnp.zeros((), jnp.int32)),
    )
    pick = lambda new, old: jnp.where(end.falls, new, old)  # noqa: E731
    return trees.where(end.falls, end.y, y), pick(end.left, left), pick(end.value, now)
