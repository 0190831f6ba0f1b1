"""AiPOD: alternating projected SGD for lower levels with linear equations.

Xiao, Shen, Yin, Chen. "Alternating projected SGD for equality-constrained bilevel optimization".
AISTATS 2023, arXiv:2211.07096.
Differs from the paper: the matrix of the equations may also depend on x, any linear solver may
replace the random series, and x may have any projection instead of that on its equations.
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

    For `x in X` and `Y(x) = {y: A y + H(x) = c}`. A step takes `lower_steps` steps
    `y ← P_Y(x)(y − β ∇_y g)`, then moves x along `hypergrad.null_space`, whose linear system is in
    the null space of A, then applies `P_X`. This takes one upper gradient, `lower_steps + 1` lower
    gradients, one cross product, and the Hessian products of the linear solver plus one. Assumes a
    lower loss that is strongly convex along the null space. With x and y steps of order `K^(−1/2)`
    and a series of order log K terms the mean squared projected gradient is `O(K^(−1/2))`.

    Attributes:
        linear: solver of the adjoint system in the null space. The default is that of the paper;
            its step size must be at most 1/L.
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
        """x and y steps of order `K^(−1/2)`; a series with a relative bias of 1e-3."""
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
        """The price of the loop, plus a lower gradient and a product if the equations need them."""
        price = self.loop.price(problem)
        return price._replace(lower_grad=price.lower_grad + 1, hvp=price.hvp + 1)
