"""Lower steps, then an implicit hypergradient, then an upper step.

The shared loop of BA, BSA, TTSA, ALSET, stocBiO, BiO-AID and AmIGO, which differ in the number of
lower steps, the solver of the adjoint system and what is warm-started.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, lower, trees
from bilevel.linear import AbstractLinear
from bilevel.methods.implicit.two_timescale import couple
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, as_samples
from bilevel.schedules import PolynomialCount, most_steps, steps_at
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate


class NestedState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    v: Lower | None  # last adjoint, if it is warm-started
    y0: Lower | None  # start of every descent, unless it is warm-started
    key: RandomKey | None  # of the linear solver, when it draws at random
    updates: tuple[Any, Any]  # memories of the x and y updates


class Nested(NamedTuple):
    """The shared loop with its components chosen; this defines a method of the family."""

    x_update: AbstractUpdate
    y_update: AbstractUpdate
    linear: AbstractLinear
    lower_steps: int | PolynomialCount = 1
    alternating: bool = True  # take the hypergradient at the new y, otherwise at the old
    warm: bool = True  # start the descent of y from the last y, otherwise from y0
    warm_adjoint: bool = False  # start the linear solver from its last result
    inner_clock: bool = False  # schedules of y count lower steps, otherwise upper ones
    hypergradient: Callable = hypergrad.closed_form_or_implicit  # or one of its signature

    def draws(self, problem: Problem) -> Draws:
        """One lower batch per lower step, one for the cross product, and the solver's samples."""
        adjoint = 0 if problem.hypergradient is not None else self.linear.samples
        return Draws(upper=1, lower=most_steps(self.lower_steps) + 1 + adjoint)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of the first step; parts that the problem declares cost nothing."""
        declared = problem.lower_step is not None
        steps = 0 if declared else int(steps_at(self.lower_steps, 0))
        if problem.hypergradient is not None:
            return Price(lower_grad=steps)
        return Price(upper_grad=1, lower_grad=steps, hvp=self.linear.products, cross=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, key: RandomKey | None) -> NestedState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        y_memory = lower.lower_step(problem, self.y_update).init(problem, x, y)
        return NestedState(
            k=jnp.zeros((), jnp.int32),
            x=x,
            y=y,
            v=trees.zeros_like(y) if self.warm_adjoint else None,
            y0=None if self.warm else trees.copy(y0),
            key=key if self.linear.needs_key else None,
            updates=(self.x_update.init(x), y_memory),
        )

    def step(
        self, problem: Problem, state: NestedState, batch: Batch
    ) -> tuple[NestedState, dict[str, Scalar]]:
        """One upper step."""
        k, x, y, v, y0, key, (sx, sy) = state
        samples = as_samples(batch.lower, self.draws(problem).lower)
        others = samples.skip(most_steps(self.lower_steps))
        key, now = (None, None) if key is None else jax.random.split(key)
        if not self.warm:  # nor does the update of y remember the descent before
            sy = lower.lower_step(problem, self.y_update).init(problem, x, y0)

        def fast(x, y):
            return lower.descend(
                problem,
                x,
                y if self.warm else y0,
                samples,
                update=self.y_update,
                memory=sy,
                steps=steps_at(self.lower_steps, k),
                k=None if self.inner_clock else k,
            )

        def slow(x, y):
            return self.hypergradient(
                problem, x, y, Batch(batch.upper, others), linear=self.linear, v0=v, key=now
            )

        h, new = couple(fast, slow, x, y, alternating=self.alternating)
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": new.grad_norm,
        }
        x = problem.upper_set.project(x)
        if self.warm_adjoint and h.v is not None:  # a declared hypergradient has no adjoint
            v = h.v
        return NestedState(k + 1, x, new.y, v, y0, key, (sx, new.memory)), info
