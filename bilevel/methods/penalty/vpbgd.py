"""V-PBGD: gradient descent on the upper loss plus a penalty on the lower value gap.

Shen, Chen. "On penalty-based bilevel gradient descent method". ICML 2023, arXiv:2302.05185.
"""

from typing import ClassVar

import equinox as eqx

from bilevel import lower
from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import LoopMethod, LowerAssumption, count
from bilevel.methods.penalty.value_gap import ValueGap
from bilevel.oracles import Price
from bilevel.problem import Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.updates import AbstractUpdate, as_update


class VPBGD(LoopMethod):
    """Joint descent of (x, y) on `f + γ (g − v(x))`, `v(x) = min g(x, ·)`: first order.

    z takes `lower_steps` warm-started descent steps on g(x, ·) and approximates its minimiser in
    `∇_x v(x) = ∇_x g(x, z)`. Then x moves along `∇_x f + γ (∇_x g(x, y) − ∇_x g(x, z))` and y
    along `∇_y f + γ ∇_y g`. Deterministic: a step uses one batch. The lower loss only has to
    satisfy the Polyak-Łojasiewicz inequality. It may have many minimisers, of which the method
    finds the optimistic one. With several local minima z may converge to the wrong one, and the
    penalty may become negative. The error of the solution is `O(1/γ)` and its gap `O(1/γ²)`; the
    squared gradient mapping of the penalised loss is `O(γ/K)`.

    Attributes:
        x_update, y_update: step sizes of at most about `1/(L_f + γ L_g)`, so of order 1/γ.
        z_update: update of z, with step size at most 1/L; its schedules count the lower steps.
        penalty: γ; a schedule that grows from zero helps if the start is far from the solution.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(default=10.0, converter=as_schedule, metadata=NONNEGATIVE)
    lower_steps: int = count(10, grows=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y"
    paper: ClassVar[str] = "shen2023penalty"

    @property
    def loop(self) -> ValueGap:
        descent = lower.Gradient(self.z_update, self.lower_steps)
        return ValueGap(self.x_update, self.y_update, descent, self.penalty)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step. z takes one lower gradient per step, and one more."""
        price = self.loop.price(problem)
        return price._replace(lower_grad=price.lower_grad + self.lower_steps + 1)
