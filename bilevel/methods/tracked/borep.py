"""BO-REP: normalised upper steps, and a lower level refined every few of them.

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
from bilevel.fields import nonnegative
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
    """Normalised momentum above, a periodic refinement below: for upper losses of any curvature.

    `h ← (1 − θ_k) h + θ_k (∇_x f − (∂²g/∂x∂y) v)`, `x ← x − a_k h/‖h‖`, both h and v from zero.
    Between refinements y rests, for x moves by a known length. Assumes an upper loss whose
    smoothness may grow with its gradient, as in recurrent networks, and a lower loss strongly
    convex in y. Scaling the upper loss changes nothing. With constant x steps x ends in a ball of
    their order about the solution: let them decay.

    Attributes:
        x_update: moves x along a direction of norm one.
        y_update: steps of the refinements.
        weight: θ_k, the weight of the new direction.
        refine: how y is refined, every `period` steps.
        first: how y is refined before the first step. With a stream of batches every step pulls as
            many of them as the longest refinement takes.
        use_updated_v: move v before the x direction is taken, as released code does; costs a
            gradient and a cross product more.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    weight: AbstractSchedule = nonnegative(0.1, converter=as_schedule)
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
        """x steps of order `K^(−3/4)`, of v, y and the weight `K^(−1/2)`, period of `K^(1/2)`.

        The fast ones are 1/L and 1 for a hundred steps, since y and v must keep up with an x whose
        steps do not shrink with its gradient. `length` is about how far x has to go.
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
        """The mean over a period; the first refinement comes on top."""
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
        """y and what its update remembers: refined at k = 0 and every `period` steps."""
        k, x, y, _, (_, sy, _), _ = state

        def by(refinement):
            given = {"update": self.y_update, "memory": sy, "k": k}
            return lambda: refinement.descend(problem, x, y, samples, **given)[:2]

        case = jnp.where(k == 0, 0, jnp.where(k % self.period == 0, 1, 2))
        return jax.lax.switch(case, (by(self.first), by(self.refine), lambda: (y, sy)))
