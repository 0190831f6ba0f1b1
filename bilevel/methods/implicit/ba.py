"""BA: a growing number of lower steps before each upper step, without noise.

Ghadimi, Wang. "Approximation methods for bilevel programming". 2018, arXiv:1802.02246.
Differs from the paper: the descent of y is warm-started by default, and the adjoint system may be
solved by conjugate gradients.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import CG, AbstractLinear
from bilevel.methods.base import Constants, LoopMethod, count
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.schedules import PolynomialCount
from bilevel.updates import AbstractUpdate, as_update


class BA(LoopMethod):
    """Double loop: about `k^(1/4)` gradient steps on y, then an exact implicit hypergradient.

    For deterministic problems with a lower loss strongly convex in y and any convex upper set. With
    x steps of 1/L of the hyper-objective it needs `O(ε⁻¹)` upper and `O(ε^(−5/4))` lower gradients.

    Attributes:
        linear: solver of the adjoint system; exact with `Dense()`, or with enough steps of `CG`.
        lower_steps: a number, or `PolynomialCount`; `price` is that of the first step.
        warm: start each descent from the last y; otherwise from y0, as the paper does.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: CG(20))
    lower_steps: int | PolynomialCount = count(PolynomialCount(1 / 4), grows=True)
    warm: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y (2 y when cold)"
    rate: ClassVar[str] = "ε⁻¹ upper, ε^(−5/4) lower, no noise"
    paper: ClassVar[str] = "ghadimi2018approximation"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps: half of 1/L for x, `2/(L + μ)` for y."""
        return cls(0.5 / constants.hyper_L, 2 / (constants.L + constants.mu))

    @property
    def loop(self) -> Nested:
        return Nested(self.x_update, self.y_update, self.linear, self.lower_steps, warm=self.warm)
