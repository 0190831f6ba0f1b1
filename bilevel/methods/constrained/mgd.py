"""MGD: multiplier gradient descent for min-max problems with coupled constraints.

Tsaknakis, Hong, Zhang. "Minimax problems with coupled linear constraints: computational complexity
and duality". SIAM J. Optim. 33(4), 2023, arXiv:2110.11210.
A reconstruction in one part: the saddle in (x, y) is approximated by a fixed number of alternating
gradient steps, warm-started.
"""

from typing import ClassVar

import equinox as eqx
import jax

from bilevel.lower import lagrangian
from bilevel.methods.base import AbstractMethod, count
from bilevel.methods.constrained.multipliers import MultiplierState, ascend, slope, start
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class MGD(AbstractMethod):
    """Min-max with constraints on both players: a saddle of x and y, then one step of λ.

    Solves `min over x in X of max of f(x, y) over y in Y with h(x, y) <= 0`, which is a bilevel
    problem: pass `Problem(upper=f, lower=−f, lower_set=Coupled(h))`. By duality in y it equals
    `min over λ >= 0 of (min over x in X of max over y in Y of f − λᵀh)`. With λ fixed, a step takes
    `saddle_steps` rounds of one ascent step in y and one descent step in x at the new y. Then it
    sets `λ ← [λ + b h]_+` at the approximate saddle. Assumes f strongly convex in x and strongly
    concave in y, so that the saddle is unique and the bracket is a smooth function of λ, and h
    convex in y (affine in the paper) with an interior. `GDA` moves x and λ at the same time and
    makes no assumption on f in x.

    Deterministic: a step uses one batch. `info["mismatch"]` is `‖∇_y f + ∇_y g‖`. If it is not
    zero, the lower loss is not −f and the result is meaningless.

    Attributes:
        y_update: moves y along `−∇_y (f − λᵀh)`; use `Momentum` to accelerate.
        saddle_steps: number of steps of y and of x between two steps of λ.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    dual_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    saddle_steps: int = count(20)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, λ"
    paper: ClassVar[str] = "tsaknakis2023minimax"
    status: ClassVar[str] = "experimental"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=self.saddle_steps + 1, lower_grad=2 * self.saddle_steps + 1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MultiplierState:
        return start(problem, x0, y0, (self.x_update, self.y_update, self.dual_update))

    def step(
        self, problem: Problem, state: MultiplierState, batch: Batch
    ) -> tuple[MultiplierState, dict[str, Scalar]]:
        k, x, y, duals, (sx, sy, sd) = state

        def towards_saddle(carry, _):
            x, y, sx, sy = carry
            up = ascend(problem, self.y_update, 1, x, y, duals, sy, batch, k)
            down = slope(problem, x, up.y, duals, batch)
            x, sx = self.x_update.step(down.x, sx, x, k)
            return (problem.upper_set.project(x), up.y, sx, up.memory), up.grad_norm

        (x, y, sx, sy), sizes = jax.lax.scan(
            towards_saddle, (x, y, sx, sy), length=self.saddle_steps
        )
        at = slope(problem, x, y, duals, batch)
        duals, sd = self.dual_update.step(at.duals, sd, duals, k)
        info = at.report | {"lower_grad_norm": sizes[-1]}
        return MultiplierState(k + 1, x, y, lagrangian.allowed(duals), (sx, sy, sd)), info
