"""Descent of x along differences of values of the hyper-objective, without its derivatives.

The shared loop of IGFM and of the method of Chen, Li and So, which differ in the value oracle.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, oracles, trees
from bilevel.hypergrad import AbstractSelection
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem
from bilevel.typing import Lower, RandomKey, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate


class ZerothState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # last selected lower minimiser, where the next selections start
    key: RandomKey
    update: Any  # memory of the x update


class Zeroth(NamedTuple):
    """The shared loop with its components chosen; this defines a method of the family."""

    x_update: AbstractUpdate
    selection: AbstractSelection
    radius: ScalarLike

    def draws(self, problem: Problem) -> Draws:
        """One batch of each level, the same for both values."""
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """Two selections, and the lower gradient that is reported."""
        once = self.selection.price()
        return Price(*(2 * calls for calls in once))._replace(lower_grad=2 * once.lower_grad + 1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, key: RandomKey | None) -> ZerothState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        return ZerothState(jnp.zeros((), jnp.int32), x, y, key, self.x_update.init(x))

    def step(
        self, problem: Problem, state: ZerothState, batch: Batch
    ) -> tuple[ZerothState, dict[str, Scalar]]:
        """One upper step."""
        k, x, y, key, sx = state
        now, key = jax.random.split(key)

        def value(x):
            selected = self.selection.select(problem, x, y, batch)
            return selected.value, selected

        h, (ahead, behind) = hypergrad.two_point(value, x, now, self.radius, has_aux=True)
        g_y = oracles.lower_grad(problem, x, ahead.y, batch.lower)
        x, sx = self.x_update.step(h, sx, x, k)
        info = {
            "upper": (ahead.value + behind.value) / 2,
            "hypergrad_norm": trees.norm(h),
            "lower_grad_norm": trees.norm(g_y),
            "lower_gap": jnp.maximum(ahead.gap, behind.gap),
        }
        return ZerothState(k + 1, problem.upper_set.project(x), ahead.y, key, sx), info
