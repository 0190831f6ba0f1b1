"""AmIGO: a few stochastic steps on y and on the adjoint, both warm-started.

Arbel, Mairal. "Amortized implicit differentiation for stochastic bilevel optimization". ICLR 2022,
arXiv:2111.14580.
Differs from the released code: the adjoint follows `H v = ∇_y f` itself, not its normal equations.
x is projected on `upper_set` when there is one.
"""

import math
from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import AbstractLinear, FixedPoint
from bilevel.methods.base import Constants, LoopMethod, count
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class AmIGO(LoopMethod):
    """Double loop: warm-started steps on y and on the adjoint system.

    Assumes a lower loss strongly convex in y. With κ steps of both kinds and batches of order 1/ε
    it needs `O(ε⁻²)` samples; without noise `O(ε⁻¹)` gradients. `linear` and `y_update` need steps
    of at most 1/L.

    Attributes:
        linear: `FixedPoint` takes a fresh sample for each of its steps; `NormalCG` is for an
            indefinite lower Hessian.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: FixedPoint(10, 0.1))
    lower_steps: int = count(10, grows=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "arbel2022amortized"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps: half of 1/L for x, 1/L for y and the adjoint, κ of each.

        The remaining noise depends on the batch size, which must grow like 1/ε.
        """
        L, inner = constants.L, math.ceil(constants.L / constants.mu)
        return cls(0.5 / constants.hyper_L, 1 / L, FixedPoint(inner, 1 / L), inner)

    @property
    def loop(self) -> Nested:
        return Nested(
            self.x_update, self.y_update, self.linear, self.lower_steps, warm_adjoint=True
        )
