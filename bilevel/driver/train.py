"""The lower problem alone, at a fixed x: what a bilevel run is compared with, and ends with."""

import functools

import jax
import jax.numpy as jnp

from bilevel import lower
from bilevel.data import Data
from bilevel.problem import Draws, Problem
from bilevel.typing import Lower, RandomKey, Upper
from bilevel.updates import AbstractUpdate, as_update


def train(
    problem: Problem,
    x: Upper,
    y0: Lower,
    *,
    data: Data | None = None,
    update: AbstractUpdate,
    steps: int,
    key: RandomKey | None = None,
) -> Lower:
    """`steps` lower steps from y0 at a fixed x, each on a batch of its own, as one compiled loop.

    For training a model again with what was learned, and for baselines. To go to a minimum of one
    batch, take a solver of `bilevel.lower`.

    Args:
        data: its lower half is read; a loader is not taken.
        update: moves y; its schedule counts the steps.
        key: orders or draws the samples; `jax.random.key(0)` when absent.
    """
    key = jax.random.key(0) if key is None else key
    feeder = (Data() if data is None else data).feed(key, Draws(1, max(steps, 1))).lower
    return _descend(problem, x, y0, feeder, as_update(update), steps) if steps else y0


@functools.partial(jax.jit, static_argnames="steps")
def _descend(problem, x, y0, feeder, update, steps):
    memory = lower.lower_step(problem, update).init(problem, x, y0)
    samples = feeder.draw(jnp.zeros((), jnp.int32), steps)
    return lower.descend(
        problem, x, y0, samples, update=update, memory=memory, steps=steps, k=None
    ).y
