"""BSA: a growing number of stochastic lower steps before each upper step.

Ghadimi, Wang. "Approximation methods for bilevel programming". 2018, arXiv:1802.02246.
Differs from the paper: the descent of y is warm-started by default.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import Constants, LoopMethod, count, series_terms
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.schedules import Polynomial, PolynomialCount, horizon
from bilevel.updates import AbstractUpdate, as_update


class BSA(LoopMethod):
    """Double loop: about `√k` stochastic lower steps, then an implicit hypergradient.

    Assumes a lower loss strongly convex in y and any convex upper set. With lower steps of size
    O(1/t) in the t-th, `√k` of them, and x steps of order `K^(−1/2)`, it needs `O(ε⁻²)` upper and
    `O(ε⁻³)` lower samples; `O(ε⁻¹)` and `O(ε⁻²)` for a strongly convex hyper-objective.

    Attributes:
        y_update: its schedules count the lower steps of the current descent.
        lower_steps: a number, or `PolynomialCount`; `price` is that of the first step.
        warm: start each descent from the last y; otherwise from y0, as the paper does. The latter
            leaves a bias if the number of lower steps is bounded.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 2)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.8, 1.0, 4.0)
    )
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    lower_steps: int | PolynomialCount = count(PolynomialCount(1 / 2), grows=True)
    warm: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y (2 y when cold)"
    rate: ClassVar[str] = "ε⁻² upper, ε⁻³ lower"
    paper: ClassVar[str] = "ghadimi2018approximation"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x steps of order `K^(−1/2)`, `√k` lower steps of size `2/(μ t)`, from 1/L on."""
        L, mu = constants.L, constants.mu
        return cls(
            horizon(0.5 / constants.hyper_L, 1 / 2, steps),
            Polynomial(2 / mu, 1.0, 2 * L / mu),
            RandomizedNeumann(series_terms(constants, 1e-3), 1 / L),
        )

    @property
    def loop(self) -> Nested:
        return Nested(
            self.x_update,
            self.y_update,
            self.linear,
            self.lower_steps,
            warm=self.warm,
            inner_clock=True,
        )
