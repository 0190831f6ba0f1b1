"""BOME: x and y move together, with the constraint that the lower value gap decreases.

Liu, Ye, Wright, Stone, Liu. "BOME! Bilevel optimization made easy: a simple first-order
approach". NeurIPS 2022, arXiv:2209.08709.
Differs from the released code: the multiplier is zero where its denominator underflows, instead of
a constant added to the denominator.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import lower, oracles, trees
from bilevel.fields import nonnegative
from bilevel.methods.base import AbstractMethod, Constants, LowerAssumption, count, series_terms
from bilevel.methods.penalty.barrier_multiplier import barrier_multiplier
from bilevel.methods.penalty.value_gap import value_gap
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, RepeatedBatch, Structure
from bilevel.schedules import Polynomial, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class BOMEState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x) at the pace of x
    updates: tuple[Any, Any]  # memories of the x and y updates


class BOME(AbstractMethod):
    """Joint descent on the upper loss that decreases the lower value gap: first order.

    With z a few gradient steps from y on g(x, ·) and `q = g(x, y) − g(x, z)`, z fixed, (x, y)
    moves along `∇f + λ ∇q`, the direction closest to ∇f along which q decreases at the rate
    `η ‖∇q‖²` or `η q`. Deterministic: a step uses one batch. The lower loss only has to satisfy
    the Polyak-Łojasiewicz inequality. With steps of order `K^(−1/2)` the KKT residual
    `‖∇f + λ ∇q‖² + q` is `O(K^(−1/4))` up to a term `exp(−lower_steps)`. Because z is not exactly
    the minimiser, the limit is that of a Neumann series of `lower_steps` terms with the z step.
    Constant steps end in an oscillation across `q = 0` of the order of the step size. For free
    variables only: with a projection of x the multiplier would rely on moves that the set does not
    allow, and y would not converge to y*(x).

    Attributes:
        x_update, y_update: use the same step size ξ for both. The multiplier assumes that (x, y)
            moves along one direction.
        z_update: update of z, which starts from y in each step; step size at most 1/L.
        decrease: η.
        value_based: whether the rate of decrease is `η q`; otherwise it is `η ‖∇q‖²`.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.1, 1 / 2)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.1, 1 / 2)
    )
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    lower_steps: int = count(10, grows=True)
    decrease: ScalarLike = nonnegative(0.5)
    value_based: bool = eqx.field(static=True, default=False)

    supports: ClassVar[frozenset[Structure]] = frozenset()
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻⁴"
    paper: ClassVar[str] = "liu2022bome"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/2)`; z steps 1/L, enough to reduce its error to 1e-3."""
        together = horizon(min(1 / constants.L, 1 / constants.hyper_L), 1 / 2, steps)
        return cls(together, together, 1 / constants.L, series_terms(constants, 1e-3))

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step. The two values are for the KKT residual."""
        steps = self.lower_steps
        return Price(upper_grad=1, lower_value=2, lower_grad=steps + 1, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BOMEState:
        x, y = trees.copy(x0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y)
        return BOMEState(jnp.zeros((), jnp.int32), x, y, updates)

    def step(
        self, problem: Problem, state: BOMEState, batch: Batch
    ) -> tuple[BOMEState, dict[str, Scalar]]:
        k, x, y, (sx, sy) = state
        z = lower.descend(
            problem,
            x,
            y,
            RepeatedBatch(batch.lower),
            update=self.z_update,
            memory=self.z_update.init(y),
            steps=self.lower_steps,
            k=k,
        ).y
        value, *f = oracles.upper_grads(problem, x, y, batch.upper)
        gap, q = value_gap(problem, x, y, z, batch.lower)
        rate = gap if self.value_based else trees.dot(q, q)
        decrease = jnp.asarray(self.decrease, rate.dtype) * rate
        dual = barrier_multiplier(f, q, decrease)
        d_x, d_y = d = trees.axpy(dual, q, f)
        x, sx = self.x_update.step(d_x, sx, x, k)
        y, sy = self.y_update.step(d_y, sy, y, k)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d_x),
            "lower_grad_norm": trees.norm(q[1]),
            "dual": dual,
            "kkt_residual": trees.dot(d, d) + gap,
        }
        return BOMEState(k + 1, x, y, (sx, sy)), info
