"""SUSTAIN: recursive momentum on the directions of both levels, in one loop, on one sample.

Khanduri, Zeng, Hong, Wai, Wang, Yang. "A near-optimal algorithm for stochastic bilevel
optimization via double-momentum". NeurIPS 2021, arXiv:2102.07367.
Differs from the paper: x is projected on `upper_set` when there is one; any linear solver may
replace the randomised series.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.estimators import STORM
from bilevel.fields import NONNEGATIVE
from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import Constants, LoopMethod, series_terms
from bilevel.methods.variance_reduced.sampled import Directions
from bilevel.methods.variance_reduced.simultaneous import Simultaneous
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, horizon
from bilevel.updates import AbstractUpdate, as_update


class SUSTAIN(LoopMethod):
    """Single loop with recursive momentum (STORM) on the hypergradient and on the lower gradient.

    Each direction is evaluated at the new and at the old (x, y) on the same samples, and
    `d ← D_new + (1 − η_k)(d − D_old)`. Then x and y move together. With x and y steps of order
    `k^(−1/3)` and weights η of order `k^(−2/3)` the mean squared hypergradient is `O(K^(−2/3))` up
    to logarithms, on one sample a step. Assumes a lower loss strongly convex in y and sample
    losses that are smooth, not only their means. With `y_weight=1` it is MSTSA. Without noise the
    weights have no effect.

    Attributes:
        linear: solver of the adjoint system; its step size must be at most 1/L.
        x_weight, y_weight: η of the two directions, at most 1; the first is always 1.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 3)
    )
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    x_weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 2 / 3), metadata=NONNEGATIVE
    )
    y_weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 2 / 3), metadata=NONNEGATIVE
    )

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.HYPERGRADIENT})
    memory: ClassVar[str] = "3 x, 3 y"
    rate: ClassVar[str] = "ε^(−3/2)"
    paper: ClassVar[str] = "khanduri2021near"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/3)`, weights of the order of their squares.

        x a fifth of its stable step, so that y is fast enough to follow without delay; the series
        has a relative bias of 1e-3.
        """
        L, weight = constants.L, horizon(1.0, 2 / 3, steps)
        return cls(
            horizon(0.2 / constants.hyper_L, 1 / 3, steps),
            horizon(1 / L, 1 / 3, steps),
            RandomizedNeumann(series_terms(constants, 1e-3), 1 / L),
            weight,
            weight,
        )

    @property
    def loop(self) -> Simultaneous:
        estimator = STORM(Directions(self.x_weight, self.x_weight, self.y_weight))
        return Simultaneous(self.x_update, self.y_update, self.linear, estimator)
