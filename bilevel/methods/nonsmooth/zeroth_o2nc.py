"""ZerothO2NC: clipped online-to-nonconvex conversion, from values of the hyper-objective only.

Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly constrained bilevel
optimization". NeurIPS 2024, arXiv:2406.12771: the zeroth-order algorithm, "Algorithm 3".
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
    """Zeroth-order version of O2NC: values by lower solves, no multipliers, no hypergradient.

    The loop of `O2NC`, with the difference quotient of two values, at z ± `smoothing` along a
    random direction, as the hypergradient. Assumes l Lipschitz, and works for any lower problem
    that can be solved to a tolerance: an error a of the values gives an error of
    `a n / smoothing`. A (δ, ε)-Goldstein point takes `O(n δ⁻¹ ε⁻³)` values, with
    `period · radius = δ − smoothing`. `mean` and `certificate` in the state are as in `O2NC`, but
    the certificate is computed from noisy difference quotients. `price` does not include the lower
    solves, whose length is not known beforehand.

    Attributes:
        x_update: moves Δ, the next move of x; a number is η.
        radius: D, the longest step.
        period: M, the number of steps of a block.
        smoothing: ρ, half the distance between the two points.
        solver: solver of the lower problem; `lower.ToTolerance()` uses only first derivatives.
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
