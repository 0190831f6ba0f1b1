"""DARTS: x descends the upper loss after one virtual lower step, then y takes a step.

Liu, Simonyan, Yang. "DARTS: differentiable architecture search". ICLR 2019, arXiv:1806.09055.
Differs from the paper: x is any variable, not only an architecture; the virtual step does not
include the momentum and weight decay of the y step.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, oracles, trees
from bilevel.fields import nonnegative, optional
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import SGD, AbstractUpdate, Momentum, as_update


class DARTSState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    updates: tuple[Any, Any]  # memories of the x and y updates


class DARTS(AbstractMethod):
    """Alternates a one-step hypergradient and a lower step: cheap, with a persistent bias.

    x moves along the gradient of `f(x, y − ξ ∇_y g(x, y))`, then y along `∇_y g` at the new x, on
    the same lower batch. Once y has converged the direction is `∇_x f − ξ (∂²g/∂x∂y) ∇_y f`: the
    hypergradient with a Neumann series of one term for the inverse Hessian. It is exact only if
    `∂²g/∂y² = I/ξ` or `∇_y f = 0`. Otherwise the method does not converge to the solution for any
    step sizes. With a `radius` it uses only first derivatives.

    Attributes:
        radius: if `None`, the cross product is exact; otherwise it is a central difference with an
            error of order `radius²` (0.01 in the paper).
        unroll_step: ξ; the step size of `y_update` if `None`. Zero ignores the response of y to x.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    radius: ScalarLike | None = nonnegative(None, converter=optional(), infinite=True)
    unroll_step: AbstractSchedule | None = nonnegative(None, converter=optional(as_schedule))

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "liu2019darts"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """The paper gives none: y steps are 1/L, and x steps a tenth of 1/hyper_L."""
        return cls(0.1 / constants.hyper_L, 1 / constants.L)

    def __check_init__(self) -> None:
        self._ahead()

    def _ahead(self) -> AbstractSchedule:
        if self.unroll_step is not None:
            return self.unroll_step
        if isinstance(self.y_update, SGD | Momentum):
            return self.y_update.step_size
        raise ValueError(
            f"unroll_step is absent, and y_update, {self.y_update!r}, has no step size to take its "
            "place: give unroll_step a number, for example the learning rate."
        )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        exact = self.radius is None
        return Price(upper_grad=1, lower_grad=2, cross=int(exact), lower_grad_x=0 if exact else 2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> DARTSState:
        x, y = trees.copy(x0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y)
        return DARTSState(jnp.zeros((), jnp.int32), x, y, updates)

    def step(
        self, problem: Problem, state: DARTSState, batch: Batch
    ) -> tuple[DARTSState, dict[str, Scalar]]:
        k, x, y, (sx, sy) = state
        ahead = self._ahead()(k)
        h = hypergrad.one_step(problem, x, y, batch, step_size=ahead, radius=self.radius)
        x, sx = self.x_update.step(h.grad, sx, x, k)
        x = problem.upper_set.project(x)
        g_y = oracles.lower_grad(problem, x, y, batch.lower)
        y, sy = self.y_update.step(g_y, sy, y, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": trees.norm(g_y),
        }
        return DARTSState(k + 1, x, y, (sx, sy)), info
