"""AiPOD: alternating projected SGD for lower levels under linear equations.

Xiao, Shen, Yin, Chen. "Alternating projected SGD for equality-constrained bilevel optimization".
AISTATS 2023, arXiv:2211.07096.
Differs from the paper: the equations may move with x in their matrix too, any linear solver may
take the place of the random series, and any projection that of the equations on x.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel import hypergrad
from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import Constants, LoopMethod, count, series_terms
from bilevel.methods.implicit.nested import Nested, NestedState
from bilevel.oracles import Price
from bilevel.problem import Problem, Structure
from bilevel.schedules import horizon
from bilevel.typing import Lower, Upper
from bilevel.updates import AbstractUpdate, as_update


class AiPOD(LoopMethod):
    """Projected lower steps on linear equations, then one step along the null-space hypergradient.

    For `x in X` and `Y(x) = {y: A y + H(x) = c}`. A step is `lower_steps` of
    `y ← P_Y(x)(y − β ∇_y g)`, then x along `hypergrad.null_space`, whose linear system lives in
    the null space of A, then `P_X`. One upper gradient, `lower_steps + 1` lower gradients, one
    cross product and the linear solver's Hessian products (and one) a step. Assumes a lower loss
    that is strongly convex along the null space. With x and y steps of order `K^(−1/2)` and a
    series of order log K terms the mean squared projected gradient is `O(K^(−1/2))`.

    Attributes:
        linear: solver of the adjoint system in the null space; the paper's is the default, its
            step at most 1/L.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    lower_steps: int = count(1, grows=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_EQUATIONS})
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "xiao2023alternating"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/2)`; the series is cut where its bias is a thousandth."""
        return cls(
            horizon(0.2 / constants.hyper_L, 1 / 2, steps),
            horizon(1 / constants.L, 1 / 2, steps),
            RandomizedNeumann(series_terms(constants, 1e-3), 1 / constants.L),
        )

    @property
    def loop(self) -> Nested:
        return Nested(
            self.x_update,
            self.y_update,
            self.linear,
            self.lower_steps,
            hypergradient=hypergrad.null_space,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> NestedState:
        x = problem.upper_set.project(x0)
        return self.loop.init(problem, x, problem.lower_set.project(y0, x), key)

    def price(self, problem: Problem) -> Price:
        """The loop's, and the lower gradient and the product that the moving equations take."""
        price = self.loop.price(problem)
        return price._replace(lower_grad=price.lower_grad + 1, hvp=price.hvp + 1)
