"""SRBA: SOBA along recursive estimates, refreshed every few steps.

Dagréou, Moreau, Vaiter, Ablin. "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization". AISTATS 2024, arXiv:2302.08766.
Differs from the paper: a refresh takes `restart` mini-batches, which may be fewer than all; x is
projected on `upper_set` when there is one.
"""

from typing import ClassVar, NamedTuple, Self

import equinox as eqx

from bilevel.estimators import SPIDER, Anchored, mean_over
from bilevel.methods.base import AbstractMethod, Constants, count
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Samples, Structure, as_batches
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate, as_update


class First(NamedTuple):
    """The first n of some samples."""

    samples: Samples
    n: int


class SRBA(AbstractMethod):
    """Single loop on finite sums: constant steps, no noise left at the solution, and no tables.

    Every `period` steps the three directions of SOBA are the mean over `restart` mini-batches; in
    between they are corrected by their change from the last point to this one on one mini-batch,
    which is two of SOBA's steps in price. Made for finite sums with a lower loss strongly convex in
    y. With a restart of all the data and a period of its order the method takes
    `O((n+m)^(1/2) ε⁻¹)` oracle calls, which is optimal; it converges linearly where the
    hyper-objective satisfies the Polyak-Łojasiewicz condition.

    Attributes:
        period: steps from one refresh to the next.
        restart: mini-batches of a refresh. In the orders "epochs" and "partition", rows /
            batch_size of them are the whole data, once; full-batch data need no more than 1.
        radius: keeps v in the ball `‖v‖ ≤ radius`; at least `‖∇_y f‖/μ`, it moves no solution.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    period: int = count(16)
    restart: int = count(16)
    radius: ScalarLike | None = eqx.field(converter=tracked.as_radius, default=None)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "3 x, 6 y"
    rate: ClassVar[str] = "(n+m)^(1/2) ε⁻¹"
    paper: ClassVar[str] = "dagreou2024lower"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None, restart: int = 16) -> Self:
        """Constant steps of order `restart^(−1/2)` and a period of `restart`, at any horizon.

        Give `restart` the number of mini-batches in the data.
        """
        scale = restart ** (-1 / 2)
        fast, slow = scale / constants.L, 0.1 * scale / constants.hyper_L
        return cls(slow, fast, fast, restart, restart)

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update, self.radius)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=self.restart, lower=self.restart)

    def price(self, problem: Problem) -> Price:
        """The mean over a period."""
        calls = (self.restart + 2 * (self.period - 1)) / self.period
        return Price(*(calls * n for n in tracked.PRICE))

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        state, nothing = self._loop.init(x0, y0), Anchored(None, None)
        path = SPIDER(self.period).init(tracked.like_directions, state.point, nothing)
        return state._replace(memory=path)

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        batches = as_batches(batch, self.draws(problem))
        sample = Anchored(small=First(batches, 1), large=First(batches, self.restart))

        def estimand(point, first: First):
            return mean_over(lambda one: tracked.directions(problem, point, one), *first)

        d, path = SPIDER(self.period).step(estimand, state.point, sample, state.memory, state.k)
        return self._loop.move(problem, state, d, path)
