"""TTSA: one lower step and one upper step, on two timescales.

Hong, Wai, Wang, Yang. "A two-timescale stochastic algorithm framework for bilevel optimization:
complexity analysis and application to actor-critic". SIAM J. Optim. 33(1), 2023, arXiv:2007.05170.
Differs from the talk's slides: the randomised series has the prefactor `terms · step_size`.
"""

from typing import ClassVar

import equinox as eqx

from bilevel import loops
from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import AbstractMethod, Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import Polynomial
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class TTSA(AbstractMethod):
    """Single loop on two timescales: x slow, y fast, a fresh adjoint every step.

    One lower step, then x moves along the implicit hypergradient at the new y. Takes a
    hypergradient in closed form or a lower step of the problem's own where it declares them.
    Made for a lower loss strongly convex in y and any convex upper set. With x steps of order
    `k^(−3/5)` and y steps of order `k^(−2/5)` the Moreau-envelope measure is `O(K^(−2/5))`; with
    1/k and `k^(−2/3)` and a strongly convex hyper-objective `E‖x − x*‖² = O(K^(−2/3))`.

    Attributes:
        linear: solver of the adjoint system; its step must be at most 1/L.
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

    handles: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y"
    paper: ClassVar[Paper] = Paper(
        "Hong, Wai, Wang, Yang",
        "A two-timescale stochastic algorithm framework for bilevel optimization: complexity "
        "analysis and application to actor-critic",
        "SIAM J. Optim. 2023",
        "2007.05170",
    )

    @property
    def _loop(self) -> loops.Nested:
        return loops.Nested(self.x_update, self.y_update, self.linear, alternating=self.alternating)

    def draws(self, problem: Problem) -> Draws:
        return self._loop.draws(problem)

    def price(self, problem: Problem) -> Price:
        return self._loop.price(problem)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> loops.NestedState:
        return self._loop.init(problem, x0, y0, key)

    def step(
        self, problem: Problem, state: loops.NestedState, batch: Batch
    ) -> tuple[loops.NestedState, dict[str, Scalar]]:
        return self._loop.step(problem, state, batch)
