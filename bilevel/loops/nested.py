"""Lower steps, then an implicit hypergradient, then an upper step.

The common loop of BA, BSA, TTSA, ALSET, stocBiO, BiO-AID and AmIGO, which differ in how many
lower steps they take, how they solve the adjoint system and what they warm-start.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, lower, trees
from bilevel.linear import AbstractLinear
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, as_samples
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate


class NestedState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # follows y*(x)
    v: Lower | None  # last adjoint, when it is warm-started
    key: RandomKey | None  # of the linear solver, when it draws at random
    updates: tuple[Any, Any]  # what the x and y updates remember


class Nested(NamedTuple):
    """The loop with its blocks chosen: what a method of this family is.

    `alternating` takes the hypergradient at the new y, otherwise at the old; `warm_adjoint` starts
    the linear solver from its last result.
    """

    x_update: AbstractUpdate
    y_update: AbstractUpdate
    linear: AbstractLinear
    lower_steps: int = 1
    alternating: bool = True
    warm_adjoint: bool = False

    def draws(self, problem: Problem) -> Draws:
        """One lower batch a step, one for the cross product, the linear solver's own."""
        adjoint = 0 if problem.hypergradient is not None else self.linear.samples
        return Draws(upper=1, lower=self.lower_steps + 1 + adjoint)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step; what a problem declares itself costs none."""
        steps = 0 if problem.lower_step is not None else self.lower_steps
        if problem.hypergradient is not None:
            return Price(lower_grad=steps)
        return Price(upper_grad=1, lower_grad=steps, hvp=self.linear.products, cross=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, key: RandomKey | None) -> NestedState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        v = trees.zeros_like(y) if self.warm_adjoint else None
        key = jax.random.key(0) if key is None else jnp.copy(key)
        key = key if self.linear.needs_key else None
        y_memory = lower.lower_step(problem, self.y_update).init(problem, x, y)
        return NestedState(
            jnp.zeros((), jnp.int32), x, y, v, key, (self.x_update.init(x), y_memory)
        )

    def step(
        self, problem: Problem, state: NestedState, batch: Batch
    ) -> tuple[NestedState, dict[str, Scalar]]:
        """One upper step."""
        k, x, y, v, key, (sx, sy) = state
        samples = as_samples(batch.lower, self.draws(problem).lower)
        key, now = (None, None) if key is None else jax.random.split(key)
        new = lower.descend(
            problem, x, y, samples, update=self.y_update, memory=sy, steps=self.lower_steps, k=k
        )
        h = hypergrad.closed_form_or_implicit(
            problem,
            x,
            new.y if self.alternating else y,
            Batch(batch.upper, samples.skip(self.lower_steps)),
            linear=self.linear,
            v0=v,
            key=now,
        )
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": new.grad_norm,
        }
        x, v = problem.upper_set.project(x), h.v if self.warm_adjoint else None
        return NestedState(k + 1, x, new.y, v, key, (sx, new.memory)), info
