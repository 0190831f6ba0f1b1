"""SRBA: SOBA with recursive estimates of its directions, refreshed every few steps.

Dagréou, Moreau, Vaiter, Ablin. "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization". AISTATS 2024, arXiv:2302.08766.
Differs from the paper: a refresh may take fewer than all mini-batches; x is projected on
`upper_set` when there is one.
"""

import dataclasses
from functools import partial
from typing import ClassVar, NamedTuple, Self

import equinox as eqx

from bilevel.estimators import ENDLESS, SPIDER, Anchored, Refresh, mean_over, most_batches
from bilevel.fields import positive
from bilevel.methods.base import AbstractMethod, Constants, count
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Samples, Structure, as_samples
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate, as_update


class First(NamedTuple):
    """The first n samples of both levels."""

    upper: Samples
    lower: Samples
    n: int


class SRBA(AbstractMethod):
    """Single loop on finite sums: constant steps, no noise at the solution, and no tables.

    Every `period` steps the three directions of SOBA are those of all the data, taken at once; in
    between they are corrected by their change from the last point to this one on one mini-batch,
    which is two of SOBA's steps in price. Made for finite sums with a lower loss strongly convex in
    y: the method takes `O((n+m)^(1/2) ε⁻¹)` oracle calls, which is optimal, and converges linearly
    where the hyper-objective satisfies the Polyak-Łojasiewicz condition. From a sampler or a
    stream, which have no end, a refresh is the mean over 16 batches, and some noise is left.

    Attributes:
        period: steps from one refresh to the next; as many as the data have batches when absent.
        restart: mini-batches of a refresh, drawn, for a large finite sum; all the data when absent.
        batches: how many mini-batches make up the data; `solve` and `run` set it.
        radius: keeps v in the ball `‖v‖ ≤ radius`; at least `‖∇_y f‖/μ`, it moves no solution.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    period: int | None = count(None)
    restart: int | None = count(None)
    radius: ScalarLike | None = positive(None, converter=tracked.as_radius, infinite=True)
    batches: int | None = count(None)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "3 x, 6 y"
    rate: ClassVar[str] = "(n+m)^(1/2) ε⁻¹"
    paper: ClassVar[str] = "dagreou2024lower"

    @classmethod
    def theory(
        cls, constants: Constants, *, steps: int | None = None, restart: int | None = None
    ) -> Self:
        """Constant steps of order `restart^(−1/2)` and a period of `restart`, at any horizon.

        Give `restart` the number of mini-batches in the data; the steps are those of 16 else.
        """
        scale = (restart or ENDLESS) ** (-1 / 2)
        fast, slow = scale / constants.L, 0.1 * scale / constants.hyper_L
        return cls(slow, fast, fast, restart, restart)

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update, self.radius)

    def for_data(self, batches: Batch) -> Self:
        return dataclasses.replace(self, batches=most_batches(batches))

    @property
    def _refresh(self) -> Refresh:
        return Refresh(self.period, self.restart, self.batches)

    def draws(self, problem: Problem) -> Draws:
        drawn = max(1, self._refresh.drawn)
        return Draws(upper=drawn, lower=drawn)

    def price(self, problem: Problem) -> Price:
        """The mean over a period, in batches."""
        period, size = self._refresh.period, self._refresh.size
        return Price(*((size + 2 * (period - 1)) / period * n for n in tracked.PRICE))

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        state, nothing = self._loop.init(x0, y0), Anchored(None, None)
        path = SPIDER().init(tracked.like_directions, state.point, nothing)
        return state._replace(memory=path)

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        draws, refresh = self.draws(problem), self._refresh
        small = Batch(as_samples(batch.upper, draws.upper), as_samples(batch.lower, draws.lower))
        large, n = (batch.whole, 1) if refresh.takes_all(batch) else (small, refresh.size)
        sample = Anchored(
            small=First(small.upper, small.lower, 1), large=First(large.upper, large.lower, n)
        )

        def estimand(point, first: First):
            upper, lower, n = first
            return tracked.joined(
                mean_over(partial(tracked.upper_pieces, problem, point), upper, n),
                mean_over(partial(tracked.lower_pieces, problem, point), lower, n),
            )

        path = SPIDER(refresh.period)
        d, path = path.step(estimand, state.point, sample, state.memory, state.k)
        return self._loop.move(problem, state, d, path)
