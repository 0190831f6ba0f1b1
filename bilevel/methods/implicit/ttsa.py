"""TTSA: one lower step and one upper step, on two timescales.

Hong, Wai, Wang, Yang. "A two-timescale stochastic algorithm framework for bilevel optimization:
complexity analysis and application to actor-critic". SIAM J. Optim. 33(1), 2023, arXiv:2007.05170.
Differs from the talk's slides: the randomised series has the prefactor `terms · step_size`.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import Constants, LoopMethod, series_terms
from bilevel.methods.implicit.nested import Nested
from bilevel.problem import Structure
from bilevel.schedules import Polynomial, horizon
from bilevel.updates import AbstractUpdate, as_update


class TTSA(LoopMethod):
    """Single loop on two timescales: x slow, y fast, a fresh adjoint every step.

    One lower step, then x moves along the implicit hypergradient at the new y. Uses the
    hypergradient in closed form and the lower step of the problem if it declares them.
    Assumes a lower loss strongly convex in y and any convex upper set. With x steps of order
    `k^(−3/5)` and y steps of order `k^(−2/5)` the Moreau-envelope measure is `O(K^(−2/5))`; with
    1/k and `k^(−2/3)` and a strongly convex hyper-objective `E‖x − x*‖² = O(K^(−2/3))`.

    Attributes:
        linear: solver of the adjoint system; its step size must be at most 1/L.
        alternating: take the hypergradient at the new y, as the paper does; otherwise at the old.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 0.6)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 0.4)
    )
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    alternating: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε^(−5/2)"
    paper: ClassVar[str] = "hong2023two"

    @classmethod
    def theory(
        cls,
        constants: Constants,
        *,
        steps: int | None = None,
        convex: bool = False,
        strongly_convex: bool = False,
    ) -> Self:
        """Steps for the known convexity of the hyper-objective.

        x and y steps of order `K^(−3/5), K^(−2/5)` in general, `K^(−3/4), K^(−1/2)` if it is
        convex, `1/k, k^(−2/3)` if it is strongly convex (decaying even with a horizon). The series
        has a relative bias of 1e-3.
        """
        L, hyper_L = constants.L, constants.hyper_L
        linear = RandomizedNeumann(series_terms(constants, 1e-3), 1 / L)
        if strongly_convex:
            scale = 2 / constants.hyper_mu
            slow = Polynomial(scale, 1.0, scale * hyper_L)  # 1/hyper_L at first
            return cls(slow, Polynomial(1 / L, 2 / 3), linear)
        p, q = (3 / 4, 1 / 2) if convex else (3 / 5, 2 / 5)
        return cls(horizon(1 / hyper_L, p, steps), horizon(1 / L, q, steps), linear)

    @property
    def loop(self) -> Nested:
        return Nested(self.x_update, self.y_update, self.linear, alternating=self.alternating)
