"""Descent for the worst (or best) lower minimiser, by Langevin chains and a superquantile.

Masiha, Shen, Kiyavash, He. "Superquantile-Gibbs relaxation for minima-selection in bi-level
optimization". 2025, arXiv:2505.05991.
The scheme is that of the paper's first version; the gradient agrees with public code.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import hypergrad, oracles, trees
from bilevel.fields import NONNEGATIVE
from bilevel.lower.gibbs import MALA, AbstractGibbs
from bilevel.methods.base import AbstractMethod, LowerAssumption
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class SuperquantileGibbsState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # the point in the tail with the lowest lower loss
    cloud: Any  # state of the sampler
    key: RandomKey
    update: Any  # memory of the x update


class SuperquantileGibbs(AbstractMethod):
    """Projected descent on a superquantile of f over the Gibbs measure of the lower loss.

    Minimises `max f(x, y)` over the lower minimisers y (pessimistic), or the minimum (optimistic).
    The minimisers may form a manifold near which g satisfies the Polyak-Łojasiewicz inequality.
    The maximum is replaced by the mean of the highest part d of f under `exp(−g/T)`, and x
    converges to a stationary point of this smooth relaxation. (The (ε, ρ)-Goldstein points of the
    paper's fourth version belong to another scheme, which uses only values of the relaxation.) A
    step takes one draw of the sampler, and one gradient of each level in x at every point. The
    gradient is a likelihood-ratio estimate, whose variance grows like 1/T.

    Attributes:
        sampler: `lower.MALA`, or `lower.Quadrature` for a y of few entries.
        temperature: T, a number or a schedule; 1e-2 to 1e-3 of the scale of g.
        level: d, a number or a schedule; 0.03 to 0.1.
        pessimistic: use the worst of the lower minimisers; if False, the best.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    sampler: AbstractGibbs = eqx.field(default_factory=MALA)
    temperature: AbstractSchedule = eqx.field(
        default=1e-2, converter=as_schedule, metadata=NONNEGATIVE
    )
    level: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)
    pessimistic: bool = eqx.field(static=True, default=True)

    supports: ClassVar[frozenset[Structure]] = frozenset({Structure.UPPER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.NONCONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, one y a chain"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "masiha2025superquantile"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The calls of the draw, and one gradient of each level in x at each point; without the
        initial descent of the chains."""
        draw, points = self.sampler.price(), self.sampler.points
        return draw._replace(
            lower_value=draw.lower_value + points,
            upper_grad_x=points,
            lower_grad_x=points,
            lower_grad=draw.lower_grad + 1,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> SuperquantileGibbsState:
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else key
        now, key = jax.random.split(key)
        cloud = self.sampler.init(y0, now)
        return SuperquantileGibbsState(
            jnp.zeros((), jnp.int32), x, y, cloud, key, self.x_update.init(x)
        )

    def step(
        self, problem: Problem, state: SuperquantileGibbsState, batch: Batch
    ) -> tuple[SuperquantileGibbsState, dict[str, Scalar]]:
        k, x, _, memory, key, sx = state
        now, key = jax.random.split(key)
        T, d = self.temperature(k), self.level(k)
        cloud = self.sampler.draw(
            problem, x, memory, batch.lower, temperature=T, first=k == 0, key=now
        )
        h = hypergrad.superquantile(
            problem, x, cloud, batch, temperature=T, level=d, pessimistic=self.pessimistic
        )
        g_y = oracles.lower_grad(problem, x, h.y, batch.lower)
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": trees.norm(g_y),
            "acceptance": cloud.acceptance,
        }
        x = problem.upper_set.project(x)
        return SuperquantileGibbsState(k + 1, x, h.y, cloud.memory, key, sx), info
