"""BiO-AID: a few lower steps, then a warm-started solve for the adjoint.

Ji, Yang, Liang. "Bilevel optimization: convergence analysis and enhanced design". ICML 2021,
arXiv:2010.07962.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

import math
from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import CG, AbstractLinear
from bilevel.methods.base import Constants, LoopMethod, count
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class BiOAID(LoopMethod):
    """Double loop with approximate implicit differentiation, y and the adjoint warm-started.

    For deterministic problems with a lower loss strongly convex in y. With κ lower steps and `√κ`
    steps of conjugate gradients it needs `O(κ³ ε⁻¹)` upper gradients, `O(κ⁴ ε⁻¹)` lower ones and
    `O(κ^3.5 ε⁻¹)` Hessian products. The error vanishes, because both warm starts improve with
    every step.

    Attributes:
        linear: solver of the adjoint system: `CG`, or `FixedPoint` with the lower step size.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: CG(5))
    lower_steps: int = count(10, grows=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = "ε⁻¹, no noise"
    paper: ClassVar[str] = "ji2021bilevel"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps: half of 1/L for x, 1/L for y; κ lower steps, `√κ` solver steps."""
        condition = constants.L / constants.mu
        linear = CG(math.ceil(math.sqrt(condition)))
        return cls(0.5 / constants.hyper_L, 1 / constants.L, linear, math.ceil(condition))

    @property
    def loop(self) -> Nested:
        return Nested(
            self.x_update, self.y_update, self.linear, self.lower_steps, warm_adjoint=True
        )
