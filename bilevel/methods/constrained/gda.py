"""GDA: gradient descent ascent for min-max problems with coupled constraints.

Tsaknakis, Hong, Zhang. "Minimax problems with coupled linear constraints: computational complexity
and duality". SIAM J. Optim. 33(4), 2023, arXiv:2110.11210; there the companion of MGD.
Differs from the paper: y may take several steps.
"""

from typing import ClassVar

import equinox as eqx

from bilevel.lower import lagrangian
from bilevel.methods.base import AbstractMethod, count
from bilevel.methods.constrained.multipliers import MultiplierState, ascend, slope, start
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class GDA(AbstractMethod):
    """Min-max with constraints on both players: y ascends, then x and the multipliers descend.

    Solves `min over x in X of max of f(x, y) over y in Y with h(x, y) <= 0`, which is a bilevel
    problem: pass `Problem(upper=f, lower=−f, lower_set=Coupled(h))`. By duality in y it equals
    `min over x in X, λ >= 0 of max over y in Y of f − λᵀh`. A step takes `lower_steps` ascent steps
    in y, then, at the new y, `(x, λ) ← (P_X(x − a (∇_x f − λᵀ∂h/∂x)), [λ + b h]_+)`. λ is minimised
    jointly with x. Assumes f concave in y (strongly, for the rate) and h convex in y (affine in the
    paper) with an interior. The gradient of `max over y of f − λᵀh` in (x, λ) has squared norm
    O(1/K). `MGD` solves for x and y before each step of λ.

    Deterministic: a step uses one batch. `info["mismatch"]` is `‖∇_y f + ∇_y g‖`. If it is not
    zero, the lower loss is not −f and the result is meaningless.

    Attributes:
        y_update: moves y along `−∇_y (f − λᵀh)`; use `Momentum` to accelerate.
        dual_update: update of λ; the same as that of x in the paper.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    dual_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    lower_steps: int = count(1)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, λ"
    rate: ClassVar[str] = "ε⁻¹"
    paper: ClassVar[str] = "tsaknakis2023minimax"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=self.lower_steps + 1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MultiplierState:
        return start(problem, x0, y0, (self.x_update, self.y_update, self.dual_update))

    def step(
        self, problem: Problem, state: MultiplierState, batch: Batch
    ) -> tuple[MultiplierState, dict[str, Scalar]]:
        k, x, y, duals, (sx, sy, sd) = state
        up = ascend(problem, self.y_update, self.lower_steps, x, y, duals, sy, batch, k)
        down = slope(problem, x, up.y, duals, batch)
        x, sx = self.x_update.step(down.x, sx, x, k)
        duals, sd = self.dual_update.step(down.duals, sd, duals, k)
        x, duals = problem.upper_set.project(x), lagrangian.allowed(duals)
        info = down.report | {"lower_grad_norm": up.grad_norm}
        return MultiplierState(k + 1, x, up.y, duals, (sx, up.memory, sd)), info
