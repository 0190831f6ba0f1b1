"""SOBA: the lower variable, the adjoint and the upper variable move together on one sample.

Dagréou, Ablin, Vaiter, Moreau. "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms". NeurIPS 2022, arXiv:2201.13409.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.fields import positive
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import horizon
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate, as_update


class SOBA(AbstractMethod):
    """Single loop with a tracked adjoint: the cheapest step that uses second derivatives.

    One upper gradient and one fused lower product (gradient, Hessian and cross product) a step.
    Assumes a smooth upper loss and a lower loss strongly convex in y. With steps of order
    `K^(−1/2)` the mean squared hypergradient after K steps is `O(K^(−1/2))`. The x step must be
    small compared to the y and v steps (a tenth on a quadratic with κ = 5); otherwise the method
    oscillates or diverges.

    Attributes:
        radius: keeps v in the ball `‖v‖ ≤ radius`. A value of at least `‖∇_y f‖/μ` does not change
            the solution.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    radius: ScalarLike | None = positive(None, converter=tracked.as_radius, infinite=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "dagreou2022framework"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """All steps of order `K^(−1/2)`; x a tenth of the others for stability."""
        fast = horizon(1 / constants.L, 1 / 2, steps)
        return cls(horizon(0.1 / constants.hyper_L, 1 / 2, steps), fast, fast)

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update, self.radius)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return tracked.PRICE

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        return self._loop.init(x0, y0)

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        d = tracked.directions(problem, state.point, batch)  # all at the same point
        return self._loop.move(problem, state, d)
