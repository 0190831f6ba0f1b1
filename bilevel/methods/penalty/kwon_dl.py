"""KwonDL: the double-loop penalty method for nonconvex lower levels, with proximal anchors.

Kwon, Kwon, Wright, Nowak. "On penalty methods for nonconvex bilevel optimization and first-order
stochastic approximation". ICLR 2024, arXiv:2309.01753. Recalled, not checked against the text.
Written with the penalty λ = 1/s; the y step is along `∇_y g + ∇_y f/λ`, as in the paper. Open: here
the gradient in x is evaluated at the inner iterates y and z; the paper may evaluate it at the
relaxed anchors.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.fields import NONNEGATIVE, fraction, positive
from bilevel.methods.base import LoopMethod, LowerAssumption, count
from bilevel.methods.penalty.penalty import Anchors, Penalty
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.updates import AbstractUpdate, as_update


class KwonDL(LoopMethod):
    """Penalty method on proximally smoothed lower problems, with lower loops: first order.

    y and z take `lower_steps` steps on `g + f/λ` and on g, each with the proximal term
    `‖y − w‖²/(2ρ)` of its anchor w. Then `w ← (1 − β) w + β y`, and x moves along
    `∇_x f(x, y) + λ (∇_x g(x, y) − ∇_x g(x, z))`. The lower loss need not be convex. It must
    satisfy a proximal error bound, the same for all `g + s f` with small s, on a compact set with a
    simple projection; then the bias is `O(1/λ)`. Stationarity ε of the penalised problem takes
    `O(ε⁻³)` steps without noise and `O(ε⁻⁷)` samples with noise, with λ of order 1/ε.

    Attributes:
        x_update: constant step size without noise; of order 1/λ with noise.
        y_update: update of y and z, with step size at most `1/(L + L_f/λ + 1/ρ)`.
        penalty: λ, one over the paper's s.
        radius: ρ, below 1/L if g is not convex.
        relaxation: β, in (0, 1].
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(default=10.0, converter=as_schedule, metadata=NONNEGATIVE)
    lower_steps: int = count(10, grows=True)
    radius: ScalarLike = positive(1.0)
    relaxation: ScalarLike = fraction(0.5)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    memory: ClassVar[str] = "x, 4 y"
    rate: ClassVar[str] = "ε^(−7/2)"
    paper: ClassVar[str] = "kwon2024penalty"
    status: ClassVar[str] = "experimental"

    @property
    def loop(self) -> Penalty:
        return Penalty(
            self.x_update,
            self.y_update,
            self.y_update,
            self.penalty,
            self.lower_steps,
            anchors=Anchors(self.radius, self.relaxation),
        )
