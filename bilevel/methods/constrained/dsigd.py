"""DSIGD: the deterministic smoothed implicit gradient method, with Armijo's line search.

Khanduri, Tsaknakis, Zhang, Liu, Liu, Zhang, Hong. "Linearly constrained bilevel optimization: a
smoothed implicit gradient approach". ICML 2023, PMLR 202:16291-16325.
Differs from the paper: after `max_backtracks` trials the line search stops and x does not move;
the lower problem is solved to rounding level instead of the paper's tolerance e_r.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import hypergrad, lower, oracles, trees
from bilevel.fields import NONNEGATIVE, count, fraction, nonnegative
from bilevel.lower import SQP, AbstractLowerSolver
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, Scalar, Upper


class DSIGDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # y_q*(x), where the next lower solve starts
    q: Lower  # the tilt of the lower loss, drawn once


class DSIGD(AbstractMethod):
    """Projected gradient descent on `l_q`, the hyper-objective of the tilted loss `g + qᵀy`.

    The direction is `d = P_X(x − s G) − x`, with G the gradient of l_q through the active set
    (`hypergrad.kkt`). x moves by the longest `ρ^m d` with
    `l_q(x + ρ^m d) ≤ l_q(x) + σ ρ^m Gᵀd`. The small random q makes l_q differentiable at any given
    x with probability one, and `|l_q − l| ≤ L_f ‖q‖/μ`. Assumes g strongly convex in y over linear
    constraints with an interior and independent active rows. Deterministic: a step uses one batch.
    The theory is for a fixed polytope; here the polytope may depend on x and is differentiated.

    l_q never increases, and every limit point is stationary, but ‖G‖ need not go to zero: if the
    minimiser of l is a kink for every q, x converges to the kink and the steps shrink. Judge the
    result by the Goldstein subdifferential, not by ‖G‖. Each trial of the line search costs a lower
    solve and a value. `price` is that of a step accepted at once, without its two lower solves.

    Attributes:
        step_size: s, the first trial step.
        shrink: ρ.
        decrease: σ.
        deviation: standard deviation of the Gaussian entries of q.
        max_backtracks: largest number of trials; after that x does not move.
    """

    step_size: AbstractSchedule = eqx.field(
        default=1.0, converter=as_schedule, metadata=NONNEGATIVE
    )
    shrink: ScalarLike = fraction(0.9)
    decrease: ScalarLike = nonnegative(1e-4)
    deviation: ScalarLike = nonnegative(1e-3)
    max_backtracks: int = count(100)
    solver: AbstractLowerSolver = eqx.field(default_factory=SQP)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_LINEAR})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y, Hessian of y"
    paper: ClassVar[str] = "khanduri2023linearly"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return hypergrad.ActiveSet(self.solver).price._replace(upper_value=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> DSIGDState:
        x, y = problem.upper_set.project(trees.copy(x0)), trees.copy(y0)
        key = jax.random.key(0) if key is None else key
        q = lower.tilt(key, y, self.deviation)
        return DSIGDState(jnp.zeros((), jnp.int32), trees.copy(x), y, q)

    def step(
        self, problem: Problem, state: DSIGDState, batch: Batch
    ) -> tuple[DSIGDState, dict[str, Scalar]]:
        k, x, y, q = state
        tilted = lower.tilted(problem, q)
        h = hypergrad.ActiveSet(self.solver)(tilted, x, y, batch)
        ahead = problem.upper_set.project(trees.axpy(-self.step_size(k), h.grad, x))
        d = trees.sub(ahead, x)
        slope = trees.dot(h.grad, d)
        value = h.value.astype(slope.dtype)
        decrease, shrink = (jnp.asarray(a, slope.dtype) for a in (self.decrease, self.shrink))
        rounding = 4 * jnp.finfo(slope.dtype).eps * jnp.abs(value)

        def attempt(a: Scalar, count: Array) -> _Attempt:
            new = trees.axpy(a, d, x)
            there = self.solver.solve(tilted, new, h.y, batch.lower).y
            reached = oracles.upper_value(problem, new, there, batch.upper).astype(a.dtype)
            accepted = reached <= value + decrease * a * slope + rounding
            return _Attempt(a, count, new, there, accepted)

        tried = jax.lax.while_loop(
            lambda at: ~at.accepted & (at.backtracks < self.max_backtracks),
            lambda at: attempt(shrink * at.a, at.backtracks + 1),
            attempt(jnp.ones((), slope.dtype), jnp.zeros((), jnp.int32)),
        )
        x, y = trees.where(tried.accepted, (tried.x, tried.y), (x, h.y))
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
            "sc_margin": h.sc_margin,
            "backtracks": tried.backtracks,
        }
        return DSIGDState(k + 1, x, y, q), info


class _Attempt(NamedTuple):
    a: Scalar
    backtracks: Int[Array, ""]
    x: Upper
    y: Lower
    accepted: Bool[Array, ""]
