"""F2SA: the lower problem as a penalty, with first derivatives only.

Kwon, Kwon, Wright, Nowak. "A fully first-order method for stochastic bilevel optimization".
ICML 2023, arXiv:2301.10945.
Differs from the paper: the y step size is that for `∇_y g + ∇_y f/λ`, that is, the paper's step
size times λ, so that it does not depend on the penalty; common samples are the default; y and z are
projected on `lower_set` when there is one, which the paper's analysis does not cover.
"""

import math
from typing import ClassVar, Self

import equinox as eqx

from bilevel.fields import NONNEGATIVE
from bilevel.methods.base import Constants, LoopMethod, count
from bilevel.methods.penalty.penalty import Penalty
from bilevel.problem import Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, horizon
from bilevel.updates import AbstractUpdate, as_update


class F2SA(LoopMethod):
    """Penalty method on the value function `g(x, y) − min g(x, ·)`: no Hessian products.

    A step takes `lower_steps` steps on y and z, then moves x along
    `∇_x f(x, y) + λ_k (∇_x g(x, y) − ∇_x g(x, z))`, which is the hypergradient up to `O(1/λ_k)`.
    Assumes a lower loss strongly convex in y, a penalty above `2 L_f/μ`, and y and z steps of at
    most 1/L. With noise at both levels, x steps `k^(−5/7)`, y and z steps `k^(−4/7)` and a penalty
    `k^(1/7)` the mean squared hypergradient is `O(K^(−2/7))`.

    Attributes:
        y_update: moves y along `∇_y g + ∇_y f/λ_k`; use a step size like that of z.
        penalty: λ as a function of the step number; it must grow slowly enough for y to follow.
        common_samples: evaluate g at y and at z on the same samples. If False, the noise of the
            x direction is multiplied by λ.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(2.0, -1 / 3), metadata=NONNEGATIVE
    )
    lower_steps: int = count(10, grows=True)
    common_samples: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = "ε^(−7/2)"
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

        x steps `K^(−a)`, y and z steps `K^(−c)`, penalty `K^(a−c)`, with (a, c) = (5/7, 4/7) for
        noise at both levels, (3/5, 2/5) at the upper level only, (1/3, 0) without; κ lower steps.
        """
        if lower_noise:
            a, c = 5 / 7, 4 / 7
        else:
            a, c = (3 / 5, 2 / 5) if upper_noise else (1 / 3, 0.0)
        # The same for y and z: if one lags, the penalty turns the difference into a direction.
        fast = horizon(1 / (constants.L + constants.mu / 2), c, steps)
        return cls(
            horizon(1 / constants.hyper_L, a, steps),
            fast,
            fast,
            horizon(2 * constants.upper_L / constants.mu, c - a, steps),
            math.ceil(constants.L / constants.mu),
        )

    @property
    def loop(self) -> Penalty:
        return Penalty(
            self.x_update,
            self.y_update,
            self.z_update,
            self.penalty,
            self.lower_steps,
            common_samples=self.common_samples,
        )
