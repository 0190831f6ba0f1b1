"""MRBO: recursive momentum at both levels, with a Neumann series and one scale for all steps.

Yang, Ji, Liang. "Provably faster algorithms for bilevel optimization". NeurIPS 2021,
arXiv:2106.04692.
Differs from the paper: x is projected on `upper_set` when there is one; every direction starts
with weight 1.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.estimators import STORM
from bilevel.fields import NONNEGATIVE
from bilevel.linear import AbstractLinear, Neumann
from bilevel.methods.base import Constants, LoopMethod, series_terms
from bilevel.methods.variance_reduced.sampled import Directions
from bilevel.methods.variance_reduced.simultaneous import Simultaneous
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, horizon
from bilevel.updates import AbstractUpdate, as_update


class MRBO(LoopMethod):
    """SUSTAIN with the full Neumann series: more products per step, less noise.

    `d ← D_new + (1 − a_k)(d − D_old)` for the hypergradient and the lower gradient, both points
    on the same samples. Then x and y move together, by `γ s_k` and `λ s_k`. With `s_k` of order
    `k^(−1/3)` and weights `a_{k+1} = c s_k²` the mean squared hypergradient is `O(K^(−2/3))` up to
    logarithms, on batches of constant size. Assumes a lower loss strongly convex in y and sample
    losses that are smooth, not only their means. Without noise the weights have no effect.

    Attributes:
        linear: solver of the adjoint system; its step size must be at most 1/L.
        x_weight, y_weight: a of the two directions, at most 1; the first is always 1.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 3)
    )
    linear: AbstractLinear = eqx.field(default_factory=lambda: Neumann(10, 0.1))
    x_weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 2 / 3), metadata=NONNEGATIVE
    )
    y_weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 2 / 3), metadata=NONNEGATIVE
    )

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.HYPERGRADIENT})
    memory: ClassVar[str] = "3 x, 3 y"
    rate: ClassVar[str] = "ε^(−3/2)"
    paper: ClassVar[str] = "yang2021provably"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """One scale `s_k = (k + 2)^(−1/3)` for both steps; weights `a_{k+1} = s_k²`.

        x a fifth of its stable step; the series has a relative bias of 1e-3.
        """
        L, weight = constants.L, horizon(1.0, 2 / 3, steps)
        return cls(
            horizon(0.2 / constants.hyper_L, 1 / 3, steps, start=2),
            horizon(1 / L, 1 / 3, steps, start=2),
            Neumann(series_terms(constants, 1e-3) - 1, 1 / L),
            weight,
            weight,
        )

    @property
    def loop(self) -> Simultaneous:
        estimator = STORM(Directions(self.x_weight, self.x_weight, self.y_weight))
        return Simultaneous(self.x_update, self.y_update, self.linear, estimator)
