"""G-PBGD: gradient descent on the upper loss plus a penalty on the squared lower gradient.

Shen, Chen. "On penalty-based bilevel gradient descent method". ICML 2023, arXiv:2302.05185.
The penalty is `½ γ ‖∇_y g‖²`, as in the authors' code; the paper has no factor ½.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import AbstractMethod, LowerAssumption
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class GPBGDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower
    updates: tuple[Any, Any]  # memories of the x and y updates


class GPBGD(AbstractMethod):
    """Joint descent of (x, y) on `f + ½ γ ‖∇_y g(x, y)‖²`: no lower loop, one Hessian product.

    Both gradients of the penalty, `γ (∂²g/∂x∂y) ∇_y g` and `γ (∂²g/∂y²) ∇_y g`, come from one fused
    pass. Deterministic: both lower derivatives use one batch. Assumes a lower loss that satisfies
    the Polyak-Łojasiewicz inequality. Without it, the penalty also vanishes at stationary points
    of g that are not minima. The error of the solution is `O(1/γ)`; the squared gradient of the
    penalised loss is `O(γ/K)`.

    Attributes:
        x_update, y_update: steps of at most about `1/(L_f + γ L_g²)`, so of order 1/γ.
        penalty: γ.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    penalty: AbstractSchedule = eqx.field(default=10.0, converter=as_schedule, metadata=NONNEGATIVE)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    paper: ClassVar[str] = "shen2023penalty"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=2, hvp=1, cross=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> GPBGDState:
        x, y = trees.copy(x0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y)
        return GPBGDState(jnp.zeros((), jnp.int32), x, y, updates)

    def step(
        self, problem: Problem, state: GPBGDState, batch: Batch
    ) -> tuple[GPBGDState, dict[str, Scalar]]:
        k, x, y, (sx, sy) = state
        penalty = self.penalty(k)
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        g_y = oracles.lower_grad(problem, x, y, batch.lower)
        _, hvp, cross = oracles.lower_products(problem, x, y, g_y, batch.lower)
        d_x = trees.axpy(penalty, cross, f_x)
        x, sx = self.x_update.step(d_x, sx, x, k)
        y, sy = self.y_update.step(trees.axpy(penalty, hvp, f_y), sy, y, k)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d_x),
            "lower_grad_norm": trees.norm(g_y),
            "penalty": penalty,
        }
        return GPBGDState(k + 1, problem.upper_set.project(x), y, (sx, sy)), info
