"""BLOCC: a value-gap penalty whose two lower problems are solved by primal-dual steps.

Jiang, Xiao, Tenorio, Real-Rojas, Marques, Chen. "A primal-dual-assisted penalty approach to
bilevel optimization with coupled constraints". NeurIPS 2024, arXiv:2406.10148.
Differs from the paper: the second saddle is that of `f/γ + g`, with the multipliers divided by γ,
so that both can use the same step sizes; equations have multipliers of either sign.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.fields import NONNEGATIVE
from bilevel.lower import kkt, lagrangian
from bilevel.lower.kkt import Duals
from bilevel.methods.base import AbstractMethod, count
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Saddle(NamedTuple):
    y: Lower
    duals: Duals


class BLOCCState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    at_g: Saddle  # follows y*(x) and its multipliers
    at_f: Saddle  # follows the minimiser of g + f/γ; its multipliers are those divided by γ
    memory: Any  # memory of the x update

    @property
    def y(self) -> Lower:
        return self.at_g.y


class BLOCC(AbstractMethod):
    """Penalty method for coupled lower constraints, first-order, without a joint projection.

    With `L = g + λᵀh` the Lagrangian, (y, λ) its saddle point over `y in Y, λ >= 0` and (z, η) that
    of `L + f/γ`, x moves along `∇_x f(x, z) + γ (∇_x L(x, z, η) − ∇_x L(x, y, λ))`, the exact
    gradient of the penalised hyper-objective, followed by P_X. Each saddle is warm-started and
    takes `lower_steps` rounds of `y_steps` projected steps in y and one ascent step in the
    multipliers. Y is the part of the lower set with a simple projection (one fixed box, ball,
    simplex or affine set), and h the rest. Deterministic: a step uses one batch. Assumes g strongly
    convex and h convex in y, with independent active constraints; use `y_steps=1` if h is affine.
    The squared gradient mapping is ε after `O(ε^(−2.5))` gradients, or `O(ε^(−1.5))` if h is affine
    in y, with γ of order `ε^(−1/2)`.

    Attributes:
        y_update: step size at most 1/L of `g + f/γ`.
        dual_update: update of the multipliers, with step size about `μ/‖∂h/∂y‖²`.
        penalty: γ.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    dual_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(default=10.0, converter=as_schedule, metadata=NONNEGATIVE)
    lower_steps: int = count(50, grows=True)
    y_steps: int = count(1)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y, 2 λ"
    rate: ClassVar[str] = "ε^(−2.5)"
    paper: ClassVar[str] = "jiang2024primal"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        steps = self.lower_steps * self.y_steps
        return Price(upper_grad_x=1, upper_grad_y=steps, lower_grad=2 * steps, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BLOCCState:
        Y, coupled = lagrangian.split(problem)
        x, y = problem.upper_set.project(trees.copy(x0)), Y.project(trees.copy(y0))
        saddle = Saddle(y, kkt.no_duals(coupled, x, y))
        memory = self.x_update.init(x)
        return trees.copy(BLOCCState(jnp.zeros((), jnp.int32), x, saddle, saddle, memory))

    def step(
        self, problem: Problem, state: BLOCCState, batch: Batch
    ) -> tuple[BLOCCState, dict[str, Scalar]]:
        k, x, at_g, at_f, memory = state
        Y, coupled = lagrangian.split(problem)
        penalty = self.penalty(k)

        def g_y(y: Lower) -> Lower:
            return oracles.lower_grad(problem, x, y, batch.lower)

        def both_y(y: Lower) -> Lower:
            return trees.axpy(1 / penalty, oracles.upper_grad_y(problem, x, y, batch.upper), g_y(y))

        def lagrangian_x(y: Lower, duals: Duals) -> Upper:
            g_x = oracles.lower_grad_x(problem, x, y, batch.lower)
            return trees.add(g_x, lagrangian.force(coupled, x, y, duals)[0])

        at_g, size = self._settle(coupled, Y, x, at_g, g_y, k)
        at_f, _ = self._settle(coupled, Y, x, at_f, both_y, k)
        value, f_x = oracles.upper_grad_x(problem, x, at_f.y, batch.upper)
        d = trees.axpy(penalty, trees.sub(lagrangian_x(*at_f), lagrangian_x(*at_g)), f_x)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d),
            "lower_grad_norm": size,
            "violation": coupled.lower_set.violation(at_g.y, x),
            "dual": trees.norm(at_g.duals),
        }
        x, memory = self.x_update.step(d, memory, x, k)
        return BLOCCState(k + 1, problem.upper_set.project(x), at_g, at_f, memory), info

    def _settle(self, coupled: Problem, Y, x, saddle: Saddle, slope, k) -> tuple[Saddle, Scalar]:
        """Rounds of `y ← P_Y(y − a ∇_y L)` and `λ ← [λ + b h]_+`, and the last `‖∇_y L‖`."""

        def descend(carry, _):
            y, memory, duals = carry
            d = trees.add(slope(y), lagrangian.force(coupled, x, y, duals)[1])
            y, memory = self.y_update.step(d, memory, y, k)
            return (Y.project(y), memory, duals), trees.norm(d)

        def round_(carry, _):
            y, duals, (sy, sd) = carry
            (y, sy, _), sizes = jax.lax.scan(descend, (y, sy, duals), length=self.y_steps)
            up = trees.scale(-1.0, lagrangian.values(coupled, x, y))
            duals, sd = self.dual_update.step(up, sd, duals, k)
            return (y, lagrangian.allowed(duals), (sy, sd)), sizes[-1]

        y, duals = saddle
        start = (y, duals, (self.y_update.init(y), self.dual_update.init(duals)))
        (y, duals, _), sizes = jax.lax.scan(round_, start, length=self.lower_steps)
        return Saddle(y, duals), sizes[-1]
