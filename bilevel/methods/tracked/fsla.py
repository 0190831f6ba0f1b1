"""FSLA: alternates one step of y, one of the adjoint, and one of x along a STORM estimate.

Li, Gu, Huang. "A fully single loop algorithm for bilevel optimization without Hessian inverse".
AAAI 2022, arXiv:2112.04660.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

from functools import partial
from typing import ClassVar, Self

import equinox as eqx

from bilevel import oracles
from bilevel.estimators import STORM
from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import Point, TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import AbstractSchedule, as_schedule, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class FSLA(AbstractMethod):
    """Single loop that alternates: y, then v at the new y, then x at both by STORM.

    Each of the three moves uses its own samples; the x direction is evaluated at two points on the
    same samples. Assumes a smooth upper loss and a lower loss strongly convex in y. With steps of
    order `K^(−1/2)` the mean squared hypergradient is `O(K^(−1/2))`. As in SOBA the x step must be
    small compared to the others (a twentieth on a quadratic with κ = 5).

    Attributes:
        weight: η_k of STORM; 1 is plain SGD on the x direction.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    weight: AbstractSchedule = eqx.field(default=0.5, converter=as_schedule, metadata=NONNEGATIVE)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "3 x, 4 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "li2022fully"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """All steps and the weight of order `K^(−1/2)`; x a tenth of that for stability."""
        fast = horizon(1 / constants.L, 1 / 2, steps)
        slow = horizon(0.1 / constants.hyper_L, 1 / 2, steps)
        return cls(slow, fast, fast, horizon(1.0, 1 / 2, steps))

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=2, lower=3)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad_x=2, upper_grad_y=1, lower_grad=1, hvp=1, cross=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        state = self._loop.init(x0, y0)
        path = STORM(self.weight).init(tracked.like_x_direction, state.point, None)
        return state._replace(memory=path)

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        k, x, y, v, (sx, sy, sv), path = state
        upper, lower = as_samples(batch.upper, 2), as_samples(batch.lower, 3)
        x_estimand = partial(tracked.x_direction, problem)

        g_y = oracles.lower_grad(problem, x, y, lower[0])
        y, sy = self.y_update.step(g_y, sy, y, k)
        d_v = tracked.v_direction(problem, Point(x, y, v), Batch(upper[0], lower[1]))
        v, sv = self.v_update.step(d_v, sv, v, k)
        (value, h), path = STORM(self.weight).step(
            x_estimand, Point(x, y, v), Batch(upper[1], lower[2]), path, k
        )
        x, sx = self.x_update.step(h, sx, x, k)
        x = problem.upper_set.project(x)
        return TrackedState(k + 1, x, y, v, (sx, sy, sv), path), tracked.report(value, h, g_y)
