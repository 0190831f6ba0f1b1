"""E-AiPOD: AiPOD that skips most projections on the lower equations.

Xiao, Shen, Yin, Chen. "Alternating projected SGD for equality-constrained bilevel optimization".
AISTATS 2023, arXiv:2211.07096.
Differs from the paper: the matrix of the equations may also depend on x, and any linear solver may
replace the random series.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, oracles, trees
from bilevel.fields import NONNEGATIVE, fraction
from bilevel.linear import AbstractLinear, RandomizedNeumann
from bilevel.methods.base import AbstractMethod, Constants, count, series_terms
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import AbstractSchedule, as_schedule, horizon
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class EAiPODState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x), off the equations between projections
    r: Lower  # follows ∇_y g(x, y*), which is orthogonal to the null space of A
    key: RandomKey
    update: Any  # memory of the x update


class EAiPOD(AbstractMethod):
    """AiPOD with random projections on the lower equations, and several upper steps per step.

    A control variate r estimates the part of `∇_y g` that the equations balance:
    `z = y − β (∇_y g − r)`. With `probability` p, `y ← P_Y(x)(z − (β/p) r)` and
    `r ← r + (p/β)(y − z)`; otherwise `y ← z`. After `lower_steps` of these, x takes `upper_steps`
    steps along `hypergrad.null_space` with y fixed, and is projected once. This takes
    `lower_steps` lower gradients and p times as many projections. Every upper step takes an upper
    gradient, a lower gradient, a cross product and the Hessian products of the linear solver plus
    one. With p = 1 and one upper step this is AiPOD. The assumptions and the rate are the same.

    Attributes:
        y_step: β; a number or a schedule of the upper step number.
        probability: p, in (0, 1].
        linear: solver of the adjoint system in the null space; its step size at most 1/L.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_step: AbstractSchedule = eqx.field(default=1e-1, converter=as_schedule, metadata=NONNEGATIVE)
    linear: AbstractLinear = eqx.field(default_factory=lambda: RandomizedNeumann(10, 0.1))
    lower_steps: int = count(5, grows=True)
    upper_steps: int = count(2)
    probability: ScalarLike = fraction(0.3)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_EQUATIONS})
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "xiao2023alternating"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/2)`; a series with a relative bias of 1e-3."""
        return cls(
            horizon(0.1 / constants.hyper_L, 1 / 2, steps),
            horizon(1 / constants.L, 1 / 2, steps),
            RandomizedNeumann(series_terms(constants, 1e-3), 1 / constants.L),
        )

    def draws(self, problem: Problem) -> Draws:
        """One batch per lower step; per upper step one of f and those of its hypergradient."""
        lower = self.lower_steps + self.upper_steps * (1 + self.linear.samples)
        return Draws(upper=self.upper_steps, lower=lower)

    def price(self, problem: Problem) -> Price:
        times = self.upper_steps
        return Price(
            upper_grad=times,
            lower_grad=self.lower_steps + times,
            hvp=times * (self.linear.products + 1),
            cross=times,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> EAiPODState:
        x = trees.copy(problem.upper_set.project(x0))
        y = trees.copy(problem.lower_set.project(y0, x))
        key = jax.random.key(0) if key is None else jnp.copy(key)
        return EAiPODState(
            jnp.zeros((), jnp.int32), x, y, trees.zeros_like(y), key, self.x_update.init(x)
        )

    def step(
        self, problem: Problem, state: EAiPODState, batch: Batch
    ) -> tuple[EAiPODState, dict[str, Scalar]]:
        k, x, y, r, key, sx = state
        draws = self.draws(problem)
        uppers, lowers = as_samples(batch.upper, draws.upper), as_samples(batch.lower, draws.lower)
        key, coins, others = jax.random.split(key, 3)
        project = jax.random.bernoulli(coins, self.probability, (self.lower_steps,))
        beta = self.y_step(k)
        p = jnp.asarray(self.probability, beta.dtype)

        def lower_step(carry, now):
            (y, r), (s, hit) = carry, now
            g_y = oracles.lower_grad(problem, x, y, lowers[s])
            z = trees.axpy(-beta, trees.sub(g_y, r), y)

            def projected():
                y = problem.lower_set.project(trees.axpy(-beta / p, r, z), x)
                return y, trees.axpy(p / beta, trees.sub(y, z), r)

            return jax.lax.cond(hit, projected, lambda: (z, r)), trees.norm(g_y)

        def upper_step(carry, t):
            x, sx = carry
            later = lowers.skip(self.lower_steps + t * (1 + self.linear.samples))
            h = hypergrad.null_space(
                problem,
                x,
                y,
                Batch(uppers[t], later),
                linear=self.linear,
                key=jax.random.fold_in(others, t),
            )
            return self.x_update.step(h.grad, sx, x, k), (h.value, trees.norm(h.grad))

        steps = jnp.arange(self.lower_steps), project
        (y, r), norms = jax.lax.scan(lower_step, (y, r), steps)
        (x, sx), (values, sizes) = jax.lax.scan(upper_step, (x, sx), jnp.arange(self.upper_steps))
        info = {
            "upper": values[-1],
            "hypergrad_norm": sizes[-1],
            "lower_grad_norm": norms[-1],
            "projections": jnp.sum(project),
        }
        return EAiPODState(k + 1, problem.upper_set.project(x), y, r, key, sx), info
