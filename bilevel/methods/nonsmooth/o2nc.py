"""O2NC: clipped online-to-nonconvex conversion, with hypergradients of a penalised Lagrangian.

Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly constrained bilevel
optimization". NeurIPS 2024, arXiv:2406.12771.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.fields import positive
from bilevel.hypergrad import AbstractOracle, TwoPenalty
from bilevel.methods.base import LoopMethod, count
from bilevel.methods.nonsmooth.online import OnlineToNonconvex
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class O2NC(LoopMethod):
    """First-order descent on hyper-objectives with kinks from lower constraints.

    `x ← x + Δ`, then `Δ ← clip(Δ − η oracle(z), D)` with z uniform on the step just taken. The
    output of the theory is the mean of z over a random block of `period` steps. The state holds the
    mean of the last block as `mean`, and the norm of its mean hypergradient as `certificate`:
    `mean` is a (period · D, certificate)-Goldstein point, up to the error of the oracle. Assumes g
    strongly convex in y, inequalities linear or convex in y with independent active rows, and f
    and l Lipschitz. With an oracle of accuracy a, `D = Θ(δ ε²/L²)` and `η = Θ(δ ε³/L⁴)`, a
    (δ, ε + a)-Goldstein point takes `O(δ⁻¹ ε⁻³)` calls, independent of the dimension. `price` is
    that of the oracle without its lower solves, whose length is not known beforehand.

    Attributes:
        x_update: moves Δ; a number is η.
        radius: D, the longest step.
        period: M, the number of steps of a block, about δ/D.
        oracle: hypergradient oracle; `hypergrad.TwoPenalty` in the paper.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-3)
    radius: ScalarLike = positive(1e-2)
    period: int = count(10)
    oracle: AbstractOracle = eqx.field(default_factory=TwoPenalty)

    supports: ClassVar = frozenset({Structure.LOWER_LINEAR, Structure.LOWER_COUPLED})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "5 x, y, Hessian of y"
    rate: ClassVar[str] = "δ⁻¹ ε⁻²"
    paper: ClassVar[str] = "kornowski2024first"

    @property
    def loop(self) -> OnlineToNonconvex:
        return OnlineToNonconvex(self.oracle, self.x_update, self.radius, self.period)
