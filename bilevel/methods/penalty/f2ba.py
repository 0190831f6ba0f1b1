"""F2BA: the penalty method with a large constant penalty and differences of order 1 to 4.

Chen, Ma, Zhang. "Near-optimal nonconvex-strongly-convex bilevel optimization with fully
first-order oracles". JMLR 2025, arXiv:2306.14853. Higher orders (F2SA-p): arXiv:2509.02937.
Differs from the released code: the lower gradient of the y step is evaluated at y, not at z, and z
is kept between steps. The y step size is that for `∇_y g + ∇_y f/λ`: the paper's step size times λ.
"""

from typing import ClassVar, Self

import equinox as eqx

from bilevel import hypergrad
from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import Constants, LoopMethod, count, series_terms
from bilevel.methods.penalty.penalty import Penalty
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, as_schedule, horizon
from bilevel.updates import AbstractUpdate, as_update


class F2BA(LoopMethod):
    """Penalty method with an x step size independent of the penalty: no Hessian products.

    With `y_s` the minimiser of `g + s f` and `λ = penalty`, x moves along a finite difference in s
    of `∇_x (g + s f)(x, y_s)`. Order 1 is `∇_x f(x, y) + λ (∇_x g(x, y) − ∇_x g(x, z))` with y at
    `s = 1/λ` and z at `s = 0`. Each y_s takes `lower_steps` warm-started steps. The bias of the
    hypergradient is `O(1/λ^order)`. The smoothness of the penalised objective does not depend on λ,
    so the x step size is that of gradient descent. Assumes a lower loss strongly convex in y,
    `λ > 2 L_f/μ` (4 for orders 3 and 4), y steps of at most 1/L and lower steps of order
    `κ log λ`. Without noise the squared hypergradient is `O(1/K)`. With noise, common samples of g
    for all y_s keep the noise of the difference bounded; sample losses with Lipschitz gradients
    improve the rate to `ε⁻²`.

    Attributes:
        y_update: moves each y_s along `∇_y g + s ∇_y f`.
        penalty: λ; constant in the paper.
        order: 1 to 4; the number of lower iterates is 2, 2, 4, 4.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(
        default=100.0, converter=as_schedule, metadata=NONNEGATIVE
    )
    lower_steps: int = count(10, grows=True)
    order: int = eqx.field(static=True, default=1)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    memory: ClassVar[str] = "x, 2 y (4 y for orders 3, 4)"
    rate: ClassVar[str] = "ε⁻³"
    paper: ClassVar[str] = "chen2025near"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None, order: int = 1) -> Self:
        """Constant x and y steps, a penalty of order `K^(1/(2p))`: a bias of order `K^(−1/2)`.

        The penalty starts above `2 L_f/μ` times the largest node. The lower steps reduce the lower
        error to 1e-3 in each step.
        """
        widest = max(map(abs, hypergrad.differences(order)[0]))
        return cls(
            0.5 / constants.hyper_L,
            0.5 / constants.L,
            horizon(2 * widest * constants.upper_L / constants.mu, -1 / (2 * order), steps),
            2 * series_terms(constants, 1e-3),
            order,
        )

    def __check_init__(self) -> None:
        hypergrad.differences(self.order)

    @property
    def loop(self) -> Penalty:
        y_update = self.y_update
        return Penalty(
            self.x_update, y_update, y_update, self.penalty, self.lower_steps, self.order
        )
