"""ZerothO2NC: clipped online-to-nonconvex conversion from values of the hyper-objective alone.

Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly constrained bilevel
optimization". NeurIPS 2024, arXiv:2406.12771. Its zeroth-order algorithm, "Algorithm 3".
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.fields import nonnegative, positive
from bilevel.hypergrad import TwoPoint
from bilevel.lower import SQP, AbstractLowerSolver
from bilevel.methods.base import LoopMethod, count
from bilevel.methods.nonsmooth.online import OnlineToNonconvex
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class ZerothO2NC(LoopMethod):
    """Values of the hyper-objective, each by a lower solve; no multipliers, no hypergradient.

    The loop of `O2NC` with the slope between two values, at z ± `smoothing` along a random
    direction, for the hypergradient. For l Lipschitz and any lower problem that can be solved to a
    tolerance: values wrong by a cost `a n / smoothing`. A (δ, ε)-Goldstein point takes
    `O(n δ⁻¹ ε⁻³)` values, with `period · radius = δ − smoothing`. `mean` and `certificate` of the
    state are as in `O2NC`; the certificate is that of noisy slopes. The price is that without the
    lower solves, whose length is not known beforehand.

    Attributes:
        x_update: moves Δ, the next move of x; a number is η.
        radius: D, the longest step.
        period: M, the steps of a block.
        smoothing: ρ, half the distance of the two points.
        solver: of the lower problem; `lower.ToTolerance()` takes first derivatives only.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-3)
    radius: ScalarLike = positive(1e-2)
    period: int = count(10)
    smoothing: ScalarLike = nonnegative(2e-2)
    solver: AbstractLowerSolver = eqx.field(default_factory=SQP)

    supports: ClassVar = frozenset({Structure.LOWER_LINEAR, Structure.LOWER_COUPLED})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "5 x, y, Hessian of y"
    rate: ClassVar[str] = "n δ⁻¹ ε⁻¹·⁵"
    paper: ClassVar[str] = "kornowski2024first"

    @property
    def loop(self) -> OnlineToNonconvex:
        oracle = TwoPoint(self.smoothing, self.solver)
        return OnlineToNonconvex(oracle, self.x_update, self.radius, self.period)
