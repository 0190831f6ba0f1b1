"""ALSET: alternating stochastic gradients, all on one timescale.

Chen, Sun, Yin. "Closing the gap: tighter analysis of alternating stochastic gradient methods for
bilevel problems". NeurIPS 2021, arXiv:2106.13781.
Differs from one version of the paper: the random number of factors starts at 0; otherwise the bias
of the series does not vanish. x is projected on `upper_set` when there is one.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import Constants, LoopMethod, count, series_terms
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.schedules import Polynomial, horizon
from bilevel.updates import AbstractUpdate, as_update


class ALSET(LoopMethod):
    """A few lower steps, then one upper step, with step sizes of the same order.

    TTSA with `lower_steps` lower steps and a single timescale: x and y steps of order `K^(−1/2)`
    give a mean squared hypergradient of `O(K^(−1/2))`, because y*(x) is smooth. For a lower
    loss strongly convex in y with Lipschitz second derivatives. With `g = −f` it is stochastic
    gradient descent-ascent; with `g = ½‖y − h(x)‖²`, compositional optimisation.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 2)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 2)
    )
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    lower_steps: int = count(1, grows=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "chen2021closing"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/2)`; a series with a relative bias of 1e-3."""
        L = constants.L
        return cls(
            horizon(0.5 / constants.hyper_L, 1 / 2, steps),
            horizon(1 / L, 1 / 2, steps),
            RandomizedNeumann(series_terms(constants, 1e-3), 1 / L),
        )

    @property
    def loop(self) -> Nested:
        return Nested(self.x_update, self.y_update, self.linear, self.lower_steps)
