"""MGD: multiplier gradient descent for min-max problems with coupled constraints.

Tsaknakis, Hong, Zhang. "Minimax problems with coupled linear constraints: computational complexity
and duality". SIAM J. Optim. 33(4), 2023, arXiv:2110.11210.
A reconstruction: the duality is the paper's, the variant of the algorithm is ours.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.lower import kkt, lagrangian
from bilevel.lower.kkt import Duals
from bilevel.methods.base import AbstractMethod, count
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class MGDState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # follows the maximiser of f − λᵀh
    duals: Duals  # λ
    updates: tuple[Any, Any, Any]  # what the x, y and dual updates remember


class MGD(AbstractMethod):
    """Min-max with constraints on both players: x and the multipliers descend, y ascends.

    For `min over x in X of max of f(x, y) over y in Y with h(x, y) <= 0`, which is a bilevel
    problem: give `Problem(upper=f, lower=−f, lower_set=Coupled(h))`. By duality in y it is
    `min over x in X, λ >= 0 of max over y in Y of f − λᵀh`: a step is `lower_steps` ascents in y,
    then `(x, λ) ← (P_X(x − a (∇_x f − λᵀ∂h/∂x)), [λ + b h]_+)`. That λ is minimised together with
    x is what tells this from a saddle in three parties. Made for f concave in y (strongly, for the
    rate) and h convex in y, affine in the paper, with an interior. The gradient of
    `max over y of f − λᵀh` in (x, λ) has squared norm O(1/K).

    Deterministic: one batch serves a whole step. `info["mismatch"]` is `‖∇_y f + ∇_y g‖`: away
    from zero the lower loss is not −f, and the result means nothing.

    Attributes:
        y_update: moves y along `−∇_y (f − λᵀh)`; give `Momentum` to accelerate.
        dual_update: of λ, the same as x in the paper's setting.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    dual_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    lower_steps: int = count(1, grows=True)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, λ"
    rate: ClassVar[str] = "ε⁻¹"
    paper: ClassVar[str] = "tsaknakis2023minimax"
    status: ClassVar[str] = "experimental"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=self.lower_steps + 1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MGDState:
        Y, coupled = lagrangian.split(problem)
        x, y = problem.upper_set.project(trees.copy(x0)), Y.project(trees.copy(y0))
        duals = kkt.no_duals(coupled, x, y)
        updates = self.x_update.init(x), self.y_update.init(y), self.dual_update.init(duals)
        return trees.copy(MGDState(jnp.zeros((), jnp.int32), x, y, duals, updates))

    def step(
        self, problem: Problem, state: MGDState, batch: Batch
    ) -> tuple[MGDState, dict[str, Scalar]]:
        k, x, y, duals, (sx, sy, sd) = state
        Y, coupled = lagrangian.split(problem)

        def ascend(carry, _):
            y, memory = carry
            g_y = oracles.lower_grad(problem, x, y, batch.lower)
            d = trees.add(g_y, lagrangian.force(coupled, x, y, duals)[1])
            y, memory = self.y_update.step(d, memory, y, k)
            return (Y.project(y), memory), trees.norm(d)

        (y, sy), sizes = jax.lax.scan(ascend, (y, sy), length=self.lower_steps)
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        d = trees.sub(f_x, lagrangian.force(coupled, x, y, duals)[0])
        slack = trees.scale(-1.0, lagrangian.values(coupled, x, y))
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d),
            "lower_grad_norm": sizes[-1],
            "violation": coupled.lower_set.violation(y, x),
            "dual": trees.norm(duals),
            "mismatch": trees.norm(trees.add(f_y, oracles.lower_grad(problem, x, y, batch.lower))),
        }
        x, sx = self.x_update.step(d, sx, x, k)
        duals, sd = self.dual_update.step(slack, sd, duals, k)
        x, duals = problem.upper_set.project(x), lagrangian.allowed(duals)
        return MGDState(k + 1, x, y, duals, (sx, sy, sd)), info
