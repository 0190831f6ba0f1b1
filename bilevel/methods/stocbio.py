"""stocBiO: a few lower steps, then a Neumann series for the adjoint.

Ji, Yang, Liang. "Bilevel optimization: convergence analysis and enhanced design". ICML 2021,
arXiv:2010.07962.
Differs from the released code: the series is `step_size` times the sum of all Q + 1 terms, each
factor on a sample of its own.
"""

from typing import ClassVar

import equinox as eqx

from bilevel import loops
from bilevel.linear import AbstractLinear, Neumann
from bilevel.methods.base import AbstractMethod, Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class StocBiO(AbstractMethod):
    """Double loop: `lower_steps` warm-started lower steps, then an implicit hypergradient.

    Made for a lower loss strongly convex in y. With batches of order 1/ε it needs `O(ε⁻²)`
    samples for a mean squared hypergradient of ε. `linear` and `y_update` need steps of at most
    1/L; the series leaves a bias of order `(1 − step_size · μ)^(Q+1)`.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: Neumann(10, 0.1))
    lower_steps: int = eqx.field(static=True, default=10)

    handles: ClassVar = frozenset(
        {Structure.UPPER_SET, Structure.HYPERGRADIENT, Structure.LOWER_STEP}
    )
    memory: ClassVar[str] = "x, y"
    paper: ClassVar[Paper] = Paper(
        "Ji, Yang, Liang",
        "Bilevel optimization: convergence analysis and enhanced design",
        "ICML 2021",
        "2010.07962",
    )

    @property
    def _loop(self) -> loops.Nested:
        return loops.Nested(self.x_update, self.y_update, self.linear, self.lower_steps)

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
