"""SOBA: lower variable, adjoint and upper variable move together, on one sample each.

Dagréou, Ablin, Vaiter, Moreau. "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms". NeurIPS 2022, arXiv:2201.13409.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.methods.base import AbstractMethod, Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class SOBAState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # follows y*(x)
    v: Lower  # adjoint, follows the solution of H v = ∇_y f
    updates: tuple[Any, Any, Any]  # what the x, y and v updates remember


class SOBA(AbstractMethod):
    """Single loop with a tracked adjoint: the cheapest step that uses second derivatives.

    One upper gradient and one fused lower product (gradient, Hessian and cross product) a step.
    Made for a smooth upper loss and a lower loss strongly convex in y. With steps of order
    `K^(−1/2)` the mean squared hypergradient after K steps is `O(K^(−1/2))`. The x step must be
    small against the y and v steps (on a quadratic with κ = 5, a tenth): too large a ratio
    oscillates or diverges.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)

    handles: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "x, 2 y"
    paper: ClassVar[Paper] = Paper(
        "Dagréou, Ablin, Vaiter, Moreau",
        "A framework for bilevel optimization that enables stochastic and global variance "
        "reduction algorithms",
        "NeurIPS 2022",
        "2201.13409",
    )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=1, hvp=1, cross=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> SOBAState:
        x, y, v = trees.copy(x0), trees.copy(y0), trees.zeros_like(y0)
        updates = self.x_update.init(x), self.y_update.init(y), self.v_update.init(v)
        return SOBAState(jnp.zeros((), jnp.int32), x, y, v, updates)

    def step(
        self, problem: Problem, state: SOBAState, batch: Batch
    ) -> tuple[SOBAState, dict[str, Scalar]]:
        k, x, y, v, (sx, sy, sv) = state
        # Every direction is taken at the same point (x, y, v).
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        g_y, hvp, cross = oracles.lower_products(problem, x, y, v, batch.lower)
        h = trees.sub(f_x, cross)  # ∇_x f − (∂²g/∂x∂y) v
        x, sx = self.x_update.step(h, sx, x, k)
        y, sy = self.y_update.step(g_y, sy, y, k)
        v, sv = self.v_update.step(trees.sub(hvp, f_y), sv, v, k)
        info = {"upper": value, "hypergrad_norm": trees.norm(h), "lower_grad_norm": trees.norm(g_y)}
        return SOBAState(k + 1, problem.upper_set.project(x), y, v, (sx, sy, sv)), info
