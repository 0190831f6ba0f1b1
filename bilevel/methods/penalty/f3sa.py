"""F3SA: F2SA in a single loop, with a variance-reduced estimate of each of its six gradients.

Kwon, Kwon, Wright, Nowak. "A fully first-order method for stochastic bilevel optimization".
ICML 2023, arXiv:2301.10945.
Differs from the paper: as in F2SA the y step size is that for `∇_y g + ∇_y f/λ`, that is, the
paper's step size times λ; y and z are projected on `lower_set` when there is one.
"""

from typing import ClassVar, Self

import equinox as eqx
from jaxtyping import PyTree

from bilevel.estimators import STORM
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.methods.base import Constants, LoopMethod
from bilevel.methods.penalty.penalty import Penalty
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, as_schedules, horizon
from bilevel.updates import AbstractUpdate, as_update


class F3SA(LoopMethod):
    """Single-loop penalty method with STORM on every gradient: no Hessian products.

    Moves z along `∇_y g(x, z)`, y along `∇_y g(x, y) + ∇_y f(x, y)/λ_k`, then x along
    `∇_x f(x, y) + λ_k (∇_x g(x, y) − ∇_x g(x, z))`. The six gradients are estimated separately,
    because λ_k changes. Each is evaluated twice per step, on one sample. Without noise this is F2SA
    with one lower step, for any weights. Assumes a lower loss strongly convex in y and sample
    losses with Lipschitz gradients. With noise at both levels, x steps `k^(−3/5)`, y and z steps
    `k^(−2/5)`, a penalty `k^(1/5)` and weights `k^(−4/5)` the mean squared hypergradient is
    `O(K^(−2/5))`.

    Attributes:
        y_update: moves y along `∇_y g + ∇_y f/λ_k`; use a step size like that of z.
        penalty: λ as a function of the step number.
        weight: η of STORM; one for all gradients, or a pair for those of f and those of g.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.02, 3 / 5)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.1, 2 / 5)
    )
    z_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.1, 2 / 5)
    )
    penalty: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(2.0, -1 / 5), metadata=NONNEGATIVE
    )
    weight: PyTree[AbstractSchedule] = nonnegative(
        converter=as_schedules, default_factory=lambda: Polynomial(1.0, 4 / 5)
    )

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    memory: ClassVar[str] = "6 x, 9 y"
    rate: ClassVar[str] = "ε^(−5/2)"
    paper: ClassVar[str] = "kwon2023fully"

    @classmethod
    def theory(
        cls,
        constants: Constants,
        *,
        steps: int | None = None,
        upper_noise: bool = True,
        lower_noise: bool = True,
    ) -> Self:
        """Exponents for the given noise; the penalty starts at `2 L_f/μ` and grows with K.

        x steps `K^(−a)`, y and z steps `K^(−c)`, penalty `K^(a−c)`, weights `K^(−2c)`, with (a, c)
        = (3/5, 2/5) for noise at both levels, (1/2, 1/4) at the upper level only, (1/3, 0) without.
        """
        if lower_noise:
            a, c = 3 / 5, 2 / 5
        else:
            a, c = (1 / 2, 1 / 4) if upper_noise else (1 / 3, 0.0)
        # The same for y and z: if one lags, the penalty turns the difference into a direction.
        fast = horizon(1 / (constants.L + constants.mu / 2), c, steps)
        return cls(
            horizon(0.5 / constants.hyper_L, a, steps),
            fast,
            fast,
            horizon(2 * constants.upper_L / constants.mu, c - a, steps),
            horizon(1.0, 2 * c, steps),
        )

    @property
    def loop(self) -> Penalty:
        return Penalty(
            self.x_update,
            self.y_update,
            self.z_update,
            self.penalty,
            lower_steps=1,
            estimator=STORM(self.weight),
            evaluations=2,
        )
