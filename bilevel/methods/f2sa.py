"""F2SA: the lower problem as a penalty; first derivatives only.

Kwon, Kwon, Wright, Nowak. "A fully first-order method for stochastic bilevel optimization".
ICML 2023, arXiv:2301.10945.
Differs from the paper: the y step is stated for `∇_y g + ∇_y f/λ`, that is, the paper's step
times λ, so that it does not depend on the penalty; common samples are the default; y and z are
projected on `lower_set` when there is one, which the paper's analysis does not cover.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from bilevel import hypergrad, loops, trees
from bilevel.methods.base import AbstractMethod, Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class F2SAState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # follows the minimiser of g + f/penalty
    z: Lower  # follows y*(x), the minimiser of g
    updates: tuple[Any, Any, Any]  # what the x, y and z updates remember


class F2SA(AbstractMethod):
    """Penalty method on the value function `g(x, y) − min g(x, ·)`: no Hessian products.

    A step takes `lower_steps` steps on y and z, then moves x along
    `∇_x f(x, y) + λ_k (∇_x g(x, y) − ∇_x g(x, z))`, which is the hypergradient up to `O(1/λ_k)`.
    Made for a lower loss strongly convex in y, a penalty above `2 L_f/μ`, and y and z steps of at
    most 1/L. With noise at both levels, x steps `k^(−5/7)`, y and z steps `k^(−4/7)` and a penalty
    `k^(1/7)` the mean squared hypergradient is `O(K^(−2/7))`.

    Attributes:
        y_update: moves y along `∇_y g + ∇_y f/λ_k`; a step like that of z is right.
        penalty: λ as a function of the step number; it must not outgrow what y can follow.
        common_samples: evaluate g at y and at z on the same samples. Without, the noise of the
            x direction is multiplied by λ.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    penalty: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(2.0, -1 / 3)
    )
    lower_steps: int = eqx.field(static=True, default=10)
    common_samples: bool = eqx.field(static=True, default=True)

    handles: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    memory: ClassVar[str] = "x, 2 y"
    paper: ClassVar[Paper] = Paper(
        "Kwon, Kwon, Wright, Nowak",
        "A fully first-order method for stochastic bilevel optimization",
        "ICML 2023",
        "2301.10945",
    )

    def draws(self, problem: Problem) -> Draws:
        once = self.lower_steps + 1
        return Draws(upper=once, lower=once if self.common_samples else 2 * once)

    def price(self, problem: Problem) -> Price:
        steps = self.lower_steps
        return Price(upper_grad_x=1, upper_grad_y=steps, lower_grad=2 * steps, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> F2SAState:
        x, y, z = trees.copy(x0), trees.copy(y0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y), self.z_update.init(z)
        return F2SAState(jnp.zeros((), jnp.int32), x, y, z, updates)

    def step(
        self, problem: Problem, state: F2SAState, batch: Batch
    ) -> tuple[F2SAState, dict[str, Scalar]]:
        k, x, y, z, (sx, sy, sz) = state
        draws, last = self.draws(problem), self.lower_steps
        upper = as_samples(batch.upper, draws.upper)
        lower_y = as_samples(batch.lower, draws.lower)
        lower_z = lower_y if self.common_samples else lower_y.skip(last + 1)
        penalty = self.penalty(k)
        y, z, (sy, sz), lower_grad_norm = loops.descend_pair(
            problem,
            x,
            y,
            z,
            upper,
            lower_y,
            lower_z,
            updates=(self.y_update, self.z_update),
            memory=(sy, sz),
            penalty=penalty,
            steps=self.lower_steps,
            k=k,
        )
        h = hypergrad.value_difference_at(
            problem, x, y, z, upper[last], lower_y[last], lower_z[last], penalty
        )
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": lower_grad_norm,
            "penalty": penalty,
        }
        return F2SAState(k + 1, problem.upper_set.project(x), y, z, (sx, sy, sz)), info
