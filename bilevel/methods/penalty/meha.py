"""MEHA: a single loop without Hessians on the Moreau envelope of the lower loss.

Liu, Liu, Yao, Zeng, Zhang. "Moreau envelope for nonconvex bi-level optimization: a single-loop
and Hessian-free solution strategy". ICML 2024, arXiv:2405.09927.
Differs from the paper: the only nonsmooth part of the lower loss is the indicator of `lower_set`.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.methods.base import AbstractMethod, LowerAssumption
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class MEHAState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower
    z: Lower  # follows the proximal point of g(x, ·) at y
    updates: tuple[Any, Any, Any]  # memories of the x, y and z updates


class MEHA(AbstractMethod):
    """Joint descent on `f/C + g − e`, e the Moreau envelope of g(x, ·) at y: first order.

    `e(x, y) = min_z g(x, z) + ‖z − y‖²/(2c)`. z takes a step towards that minimiser, x one along
    `∇_x f/C + ∇_x g(x, y) − ∇_x g(x, z)`, and y, at the new x, along
    `∇_y f/C + ∇_y g − (y − z)/c`. A step takes two lower gradients in y, two in x,
    and one upper gradient in each of x and y. The lower loss may be weakly convex (modulus r,
    `c < 1/(2r)`); the upper and the lower set need a simple projection.
    With `C = C_0 (k + 1)^p` the residual of the penalised problem is `O(K^(−(1−2p)/2))` and the gap
    `g − e` is `O(K^(−p))`.

    If g(x, ·) is not convex, the reformulation has stationary points that are not stationary for g.
    Check that `lower_grad_norm` goes to zero.

    Attributes:
        z_update: update towards the proximal point, with step size at most `1/(L + 1/c)`.
        penalty: C; grows like `(k + 1)^p` with p in (0, 1/2).
        proximity: c; use 1 for a convex g, otherwise a tenth of 1/r.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=2e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=2e-2)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    penalty: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(10.0, -0.3), metadata=NONNEGATIVE
    )
    proximity: ScalarLike = nonnegative(1.0)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.CONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y"
    paper: ClassVar[str] = "liu2024moreau"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad_x=1, upper_grad_y=1, lower_grad=2, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MEHAState:
        x, y, z = trees.copy(x0), trees.copy(y0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y), self.z_update.init(z)
        return MEHAState(jnp.zeros((), jnp.int32), x, y, z, updates)

    def step(
        self, problem: Problem, state: MEHAState, batch: Batch
    ) -> tuple[MEHAState, dict[str, Scalar]]:
        k, x, y, z, (sx, sy, sz) = state
        upper, lower = batch.upper, batch.lower
        weight, near = 1 / self.penalty(k), 1 / jnp.asarray(self.proximity)

        d_z = trees.axpy(near, trees.sub(z, y), oracles.lower_grad(problem, x, z, lower))
        z, sz = self.z_update.step(d_z, sz, z, k)
        z = problem.lower_set.project(z)

        value, f_x = oracles.upper_grad_x(problem, x, y, upper)
        at_y = oracles.lower_grad_x(problem, x, y, lower)
        at_z = oracles.lower_grad_x(problem, x, z, lower)
        d_x = trees.axpy(weight, f_x, trees.sub(at_y, at_z))
        x, sx = self.x_update.step(d_x, sx, x, k)
        x = problem.upper_set.project(x)

        f_y = oracles.upper_grad_y(problem, x, y, upper)
        g_y = oracles.lower_grad(problem, x, y, lower)
        d_y = trees.axpy(weight, f_y, trees.axpy(-near, trees.sub(y, z), g_y))
        y, sy = self.y_update.step(d_y, sy, y, k)
        y = problem.lower_set.project(y)

        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d_x) / weight.astype(trees.widest(x)),
            "lower_grad_norm": trees.norm(g_y),
            "penalty": self.penalty(k),
        }
        return MEHAState(k + 1, x, y, z, (sx, sy, sz)), info
