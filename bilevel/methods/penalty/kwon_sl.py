"""KwonSL: the single-loop penalty method with proximal anchors and momentum on every gradient.

Kwon, Kwon, Wright, Nowak. "On penalty methods for nonconvex bilevel optimization and first-order
stochastic approximation". ICLR 2024, arXiv:2309.01753. Recalled, not checked against the text.
Written with the penalty λ = 1/s; the y step is along `∇_y g + ∇_y f/λ`, as in the paper. Open: here
the gradient in x is evaluated at the inner iterates y and z; the paper may evaluate it at the
relaxed anchors.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.estimators import STORM
from bilevel.fields import NONNEGATIVE, fraction, positive
from bilevel.methods.base import LoopMethod, LowerAssumption
from bilevel.methods.penalty.penalty import Anchors, Penalty
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.updates import AbstractUpdate, as_update


class KwonSL(LoopMethod):
    """Single-loop penalty method on proximally smoothed lower problems, with STORM: first order.

    KwonDL with one lower step, where each of the gradients is replaced by a recursive-momentum
    estimate `e ← G_new + (1 − η)(e − G_old)`, both on one sample. Without noise η has no effect.
    Makes the assumptions of KwonDL and assumes sample losses with Lipschitz gradients. Then
    `O(ε⁻⁵)` samples reach stationarity ε of the penalised problem, with λ of order 1/ε.

    Attributes:
        x_update: step size of order 1/λ².
        y_update: update of y and z, with step size at most `1/(L + L_f/λ + 1/ρ)`.
        penalty: λ, one over the paper's s; constant. STORM estimates only the gradients.
        weight: η of STORM, at most 1.
        radius: ρ, below 1/L if g is not convex.
        relaxation: β, in (0, 1].
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-3)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(default=10.0, converter=as_schedule, metadata=NONNEGATIVE)
    weight: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)
    radius: ScalarLike = positive(1.0)
    relaxation: ScalarLike = fraction(0.5)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    memory: ClassVar[str] = "6 x, 11 y"
    rate: ClassVar[str] = "ε^(−5/2)"
    paper: ClassVar[str] = "kwon2024penalty"
    status: ClassVar[str] = "experimental"

    @property
    def loop(self) -> Penalty:
        return Penalty(
            self.x_update,
            self.y_update,
            self.y_update,
            self.penalty,
            lower_steps=1,
            anchors=Anchors(self.radius, self.relaxation),
            estimator=STORM(self.weight),
            evaluations=2,
        )
