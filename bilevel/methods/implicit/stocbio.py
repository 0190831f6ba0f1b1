"""stocBiO: a few lower steps, then a Neumann series for the adjoint.

Ji, Yang, Liang. "Bilevel optimization: convergence analysis and enhanced design". ICML 2021,
arXiv:2010.07962.
Differs from the released code: the series is `step_size` times the sum of all Q + 1 terms, and each
factor has its own sample.
"""

import math
from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import AbstractLinear, Neumann
from bilevel.methods.base import Constants, LoopMethod, count, series_terms
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class StocBiO(LoopMethod):
    """Double loop: `lower_steps` warm-started lower steps, then an implicit hypergradient.

    Assumes a lower loss strongly convex in y. With batches of order 1/ε it needs `O(ε⁻²)`
    samples for a mean squared hypergradient of ε. `linear` and `y_update` need steps of at most
    1/L; the series leaves a bias of order `(1 − step_size · μ)^(Q+1)`.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: Neumann(10, 0.1))
    lower_steps: int = count(10, grows=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "ji2021bilevel"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps of order 1/L; κ lower steps and `κ log(1000)` terms of the series.

        The remaining noise depends on the batch size, which must grow like 1/ε.
        """
        L, terms = constants.L, series_terms(constants, 1e-3)
        lower_steps = math.ceil(L / constants.mu)
        return cls(0.5 / constants.hyper_L, 1 / L, Neumann(terms - 1, 1 / L), lower_steps)

    @property
    def loop(self) -> Nested:
        return Nested(self.x_update, self.y_update, self.linear, self.lower_steps)
