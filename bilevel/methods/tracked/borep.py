"""BO-REP: normalised upper steps, and periodic refinement of the lower level.

Hao, Gong, Liu. "Bilevel optimization under unbounded smoothness: a new algorithm and convergence
analysis". ICLR 2024, arXiv:2401.09587.
Differs from the paper: the norm is not padded with 1e-10; x is projected on `upper_set` when there
is one.
"""

import math
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.fields import NONNEGATIVE
from bilevel.lower import BallSGD, EpochSGD
from bilevel.methods.base import AbstractMethod, Constants, count
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import AbstractSchedule, as_schedule, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class BOREP(AbstractMethod):
    """Normalised momentum for x and periodic refinement of y, for unbounded upper smoothness.

    `h ← (1 − θ_k) h + θ_k (∇_x f − (∂²g/∂x∂y) v)`, `x ← x − a_k h/‖h‖`; h and v start at zero.
    Between refinements y is constant, because x moves by a known length. The smoothness of the
    upper loss may grow with its gradient, as in recurrent networks. Assumes a lower loss strongly
    convex in y. The method is invariant to scaling of the upper loss. With constant x steps, x
    ends in a ball around the solution with a radius of their order, so let them decay.

    Attributes:
        x_update: moves x along a direction of norm one.
        y_update: steps of the refinements.
        weight: θ_k, the weight of the new direction.
        refine: the lower solver that refines y every `period` steps.
        first: the lower solver that refines y before the first step. With a stream of data, every
            step reads as many batches as the longest refinement needs.
        use_updated_v: move v before the x direction is evaluated, as the released code does; this
            costs one more gradient and cross product.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    weight: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)
    refine: BallSGD | EpochSGD = eqx.field(default_factory=lambda: BallSGD(10))
    first: BallSGD | EpochSGD = eqx.field(default_factory=lambda: EpochSGD(10))
    period: int = count(5)
    use_updated_v: bool = eqx.field(static=True, default=False)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "2 x, 2 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "hao2024bilevel"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None, length: float = 1.0) -> Self:
        """x steps of order `K^(−3/4)`; v, y steps and weight `K^(−1/2)`; period `K^(1/2)`.

        The y and v steps are 1/L and the weight is 1 for a hundred steps, because y and v must
        follow an x whose steps do not shrink with its gradient. `length` is the approximate
        distance from x0 to the solution.
        """
        fast = horizon(10 / constants.L, 1 / 2, steps and max(steps, 100), start=100)
        weight = horizon(10.0, 1 / 2, steps and max(steps, 100), start=100)
        slow = horizon(length, 3 / 4, steps, start=10)
        period = 10 if steps is None else math.ceil(0.1 * steps**0.5)
        refine, first = BallSGD(2 * period), EpochSGD(10, epochs=6)
        return cls(slow, fast, fast, weight, refine, first, period)

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1 + max(self.refine.steps, self.first.steps))

    def price(self, problem: Problem) -> Price:
        """The mean over a period, without the first refinement."""
        again = int(self.use_updated_v)
        return Price(
            upper_grad=1,
            upper_grad_x=again,
            lower_grad=1 + self.refine.steps / self.period,
            hvp=1,
            cross=1 + again,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        return self._loop.init(x0, y0)._replace(memory=trees.zeros_like(x0))

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        k, x, _, v, (sx, sy, sv), h = state
        samples = as_samples(batch.lower, self.draws(problem).lower)
        y, sy = self._refined(problem, state, samples.skip(1))

        one, at = Batch(batch.upper, samples[0]), tracked.Point(x, y, v)
        d = tracked.directions(problem, at, one)
        v, sv = self.v_update.step(d.v, sv, v, k)
        new = tracked.x_direction(problem, at._replace(v=v), one)[1] if self.use_updated_v else d.x
        h = trees.lerp(h, new, self.weight(k))
        x, sx = self.x_update.step(tracked.normalised(h), sx, x, k)
        x = problem.upper_set.project(x)
        return TrackedState(k + 1, x, y, v, (sx, sy, sv), h), tracked.report(d.value, h, d.y)

    def _refined(self, problem, state, samples):
        """y and the memory of its update, refined at k = 0 and every `period` steps."""
        k, x, y, _, (_, sy, _), _ = state

        def by(refinement):
            warm_start = {"update": self.y_update, "memory": sy, "k": k}
            return lambda: refinement.descend(problem, x, y, samples, **warm_start)[:2]

        case = jnp.where(k == 0, 0, jnp.where(k % self.period == 0, 1, 2))
        return jax.lax.switch(case, (by(self.first), by(self.refine), lambda: (y, sy)))
