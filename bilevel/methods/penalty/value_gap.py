"""The lower problem as a penalty on its value gap, `g(x, y) − min g(x, ·)`: first derivatives only.

The shared loop of V-PBGD and of the nested form of the methods of Lu and Mei.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.lower import AbstractLowerSolver
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.schedules import AbstractSchedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate


class Gap(NamedTuple):
    """`q(x, y) = g(x, y) − g(x, z)` and its gradient in (x, y), with z fixed."""

    value: Scalar
    grad: list  # [∇_x q, ∇_y q]


def value_gap(problem: Problem, x: Upper, y: Lower, z: Lower, batch: Any) -> Gap:
    """The lower value gap of y over z, with its gradient.

    If z is the lower minimiser, this is the gap of y, and the gradient is exact although z depends
    on x (envelope theorem).
    """
    at_y = oracles.lower_grad_x(problem, x, y, batch)
    at_z = oracles.lower_grad_x(problem, x, z, batch)
    gap = oracles.lower_value(problem, x, y, batch) - oracles.lower_value(problem, x, z, batch)
    grad = [trees.sub(at_y, at_z), oracles.lower_grad(problem, x, y, batch)]
    return Gap(gap.astype(trees.widest((x, y))), grad)


class ValueGapState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # (x, y) converges to the minimiser of f + penalty (g − min g)
    z: Lower  # follows a minimiser of g(x, ·)
    updates: tuple[Any, Any]  # memories of the x and y updates


class ValueGap(NamedTuple):
    """The loop with its blocks chosen: z by `solver`, then (x, y) down `f + penalty q`."""

    x_update: AbstractUpdate
    y_update: AbstractUpdate
    solver: AbstractLowerSolver  # for z, warm-started
    penalty: AbstractSchedule

    def price(self, problem: Problem) -> Price:
        """The oracle calls after the solve for z."""
        return Price(upper_grad=1, lower_value=2, lower_grad=1, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, key=None) -> ValueGapState:
        """The state before the first step."""
        x, y, z = trees.copy(x0), trees.copy(y0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y)
        return ValueGapState(jnp.zeros((), jnp.int32), x, y, z, updates)

    def step(
        self, problem: Problem, state: ValueGapState, batch: Batch
    ) -> tuple[ValueGapState, dict[str, Scalar]]:
        """One step of x and y, with both gradients at the old (x, y)."""
        k, x, y, z, (sx, sy) = state
        z = self.solver.solve(problem, x, z, batch.lower).y
        penalty = self.penalty(k)
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        gap, (q_x, q_y) = value_gap(problem, x, y, z, batch.lower)
        d_x, d_y = trees.axpy(penalty, q_x, f_x), trees.axpy(penalty, q_y, f_y)
        x, sx = self.x_update.step(d_x, sx, x, k)
        y, sy = self.y_update.step(d_y, sy, y, k)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d_x),
            "lower_grad_norm": trees.norm(q_y),
            "lower_gap": gap,
            "penalty": penalty,
        }
        x = problem.upper_set.project(x)
        y = problem.lower_set.project(y, x)
        return ValueGapState(k + 1, x, y, z, (sx, sy)), info
