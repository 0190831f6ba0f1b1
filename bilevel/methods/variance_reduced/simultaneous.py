"""The loop that estimates both directions at the old (x, y) and then moves both variables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.estimators import AbstractEstimator
from bilevel.linear import AbstractLinear
from bilevel.methods.variance_reduced.sampled import Point, Sampled
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate


class SimultaneousState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    estimate: Any  # memory of the estimator: the last directions, and their point
    key: RandomKey | None  # for the linear solver, if it draws at random
    updates: tuple[Any, Any]  # memories of the x and y updates


class Simultaneous(NamedTuple):
    """The loop with its blocks chosen: SUSTAIN and MRBO are settings of it.

    `estimator` reduces the noise of `Directions` at a `Point`, with `evaluations` of them per step.
    """

    x_update: AbstractUpdate
    y_update: AbstractUpdate
    linear: AbstractLinear
    estimator: AbstractEstimator
    evaluations: int = 2

    def draws(self, problem: Problem) -> Draws:
        """The batches of one sample of both directions."""
        return Sampled(problem, self.linear).draws(1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step."""
        return Sampled(problem, self.linear).price(self.evaluations)

    def init(
        self, problem: Problem, x0: Upper, y0: Lower, key: RandomKey | None
    ) -> SimultaneousState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        estimate = self.estimator.init(Sampled(problem, self.linear).zeros, Point(x, y), None)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        key = key if self.linear.needs_key else None
        updates = self.x_update.init(x), self.y_update.init(y)
        return SimultaneousState(jnp.zeros((), jnp.int32), x, y, estimate, key, updates)

    def step(
        self, problem: Problem, state: SimultaneousState, batch: Batch
    ) -> tuple[SimultaneousState, dict[str, Scalar]]:
        """One step of both variables."""
        k, x, y, estimate, key, (sx, sy) = state
        key, now = (None, None) if key is None else jax.random.split(key)
        estimand = Sampled(problem, self.linear)
        sample = estimand.samples(batch, 1, now)[0]
        d, estimate = self.estimator.step(estimand, Point(x, y), sample, estimate, k)
        x, sx = self.x_update.step(d.x, sx, x, k)
        y, sy = self.y_update.step(d.y, sy, y, k)
        info = {
            "upper": d.value,
            "hypergrad_norm": trees.norm(d.x),
            "lower_grad_norm": trees.norm(d.y),
        }
        x = problem.upper_set.project(x)
        return SimultaneousState(k + 1, x, y, estimate, key, (sx, sy)), info
