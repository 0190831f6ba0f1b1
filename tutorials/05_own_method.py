"""
Writing a method
================

A method is an Equinox module with an ``init`` and a ``step``. All else follows: mini-batches,
progress, checkpoints, sweeps by ``vmap``, certificates.
"""

# %%
# The simplest one there is: a gradient step below, then one along the hypergradient, whose linear
# system is solved by a few conjugate-gradient steps.

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

import bilevel as bl
from bilevel.methods import AbstractMethod, Paper
from bilevel.oracles import Price
from bilevel.problem import Structure

jax.config.update("jax_enable_x64", True)


class State(NamedTuple):
    x: Any
    y: Any
    k: Any


class Alternating(AbstractMethod):
    """One step of y, then one of x."""

    x_step: float = 0.1
    y_step: float = 0.1

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    paper: ClassVar = Paper("Alternating steps", "Us", "this page", 2026)
    memory: ClassVar = "x, y"

    def init(self, problem, x0, y0, *, key=None):
        return State(bl.trees.copy(x0), bl.trees.copy(y0), jnp.zeros((), jnp.int32))

    def draws(self, problem):
        return bl.Draws(1, 1)

    def price(self, problem):
        return Price(upper_grad=1, lower_grad=1, hvp=5, cross=1)

    def step(self, problem, state, batch):
        x, y, k = state
        y = bl.trees.axpy(-self.y_step, jax.grad(problem.lower, 1)(x, y, batch.lower), y)
        found = bl.hypergrad.implicit(problem, x, y, batch, linear=bl.linear.CG(5))
        x = problem.upper_set.project(bl.trees.axpy(-self.x_step, found.grad, x))
        return State(x, y, k + 1), {"upper": found.value}


# %%
# It runs like any other.

problem = bl.Problem(
    lambda x, y, batch: jnp.sum((y - 1) ** 2) + 0.1 * jnp.sum(x**2),
    lambda x, y, batch: jnp.sum((y - x) ** 2),
    upper_set=bl.sets.Box(-1.0, 1.0),
)
method = Alternating(x_step=0.1, y_step=0.3)
result = bl.solve(problem, method, jnp.zeros(2), jnp.zeros(2), steps=200, progress=False)
print(result.x, 1 / 1.1)
print(result.certificate)

# %%
# Sixteen step sizes in one compilation: numbers of a method are leaves, so ``vmap`` maps them.

steps = jnp.geomspace(1e-3, 0.9, 16)
state = method.init(problem, jnp.zeros(2), jnp.zeros(2))


def last_loss(x_step):
    _, history = bl.run(problem, Alternating(x_step, 0.3), state, steps=50)
    return history["upper"][-1]


for step, loss in zip(steps, jax.jit(jax.vmap(last_loss))(steps), strict=True):
    print(f"x_step {step:.4f}: upper loss {loss:.5f}")
