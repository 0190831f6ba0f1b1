"""MA-SOBA: SOBA with a moving average of the hypergradient, and an averaged projection.

Chen, Xiao, Balasubramanian. "Optimal algorithms for stochastic bilevel optimization under relaxed
smoothness conditions". JMLR 2024, arXiv:2306.12067.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel import trees
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule, horizon
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate, as_update


class MASOBA(AbstractMethod):
    """SOBA with momentum on the hypergradient: same rate, weaker smoothness, any convex set.

    `x ← x + a_k (P_X(x − τ h) − x)`, `h ← (1 − θ_k) h + θ_k (∇_x f − (∂²g/∂x∂y) v)`, with h from
    zero; y and v move as in SOBA. Assumes a smooth upper loss, a lower loss strongly convex in y,
    and a convex upper set. With a, θ and the steps of y and v of order `K^(−1/2)` the mean of
    `‖x − P_X(x − τ ∇l)‖²` is `O(K^(−1/2))` with batches of any size. Because the average lags and
    v is tracked, the x steps have to be smaller than in SOBA.

    Attributes:
        x_update: moves x along `x − P_X(x − τ h)`; steps of at most 1 stay in the set.
        weight: θ_k, the weight of the new direction.
        tau: τ, step of the projected point; without a set it multiplies the x step.
        use_updated_h: move x along the new average, as the released code does; otherwise along the
            old one, as in the paper.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    weight: AbstractSchedule = eqx.field(default=0.5, converter=as_schedule, metadata=NONNEGATIVE)
    tau: ScalarLike = nonnegative(1.0)
    use_updated_h: bool = eqx.field(static=True, default=False)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "2 x, 2 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "chen2024optimal"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """All steps and the weight of order `K^(−1/2)`; x a twentieth of that for stability."""
        fast = horizon(1 / constants.L, 1 / 2, steps)
        slow, weight = horizon(0.05, 1 / 2, steps), horizon(1.0, 1 / 2, steps)
        return cls(slow, fast, fast, weight, tau=1 / constants.hyper_L)

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return tracked.PRICE

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        return self._loop.init(x0, y0)._replace(memory=trees.zeros_like(x0))

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        d = tracked.directions(problem, state.point, batch)
        h = trees.lerp(state.memory, d.x, self.weight(state.k))
        along = h if self.use_updated_h else state.memory
        d = d._replace(x=tracked.averaged_prox(problem.upper_set, state.x, along, self.tau))
        state, info = self._loop.move(problem, state, d, h)
        return state, info | {"hypergrad_norm": trees.norm(h)}
