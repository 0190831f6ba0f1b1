"""The curvature of the hyper-objective where a run spends its steps, not where it starts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import effort, hypergrad, oracles, trees
from bilevel.certificates import Probe, hyper_curvature
from bilevel.linear import CG
from bilevel.lower import NewtonCG
from bilevel.problem import Batch, Problem, Structure
from bilevel.sets import Free
from bilevel.typing import Lower, RandomKey, Scalar, Upper

MOST_STEPS = 20
SHARE = 0.1  # of its first norm, that the hypergradient falls to


def measured_ahead(
    look: Probe, problem: Problem, x: Upper, y: Lower, batch: Batch, key: RandomKey
) -> Probe:
    """A probe whose `hyper_L` and `hyper_mu` are those where the first directions lead.

    From x, gradient descent on `f(x, y*(x))` with steps told by the last two gradients goes on
    until the hypergradient is a tenth of what it was, and the curvature is measured there. Where
    the hyper-objective is quadratic this changes nothing. Where x is the logarithm of a penalty, or
    goes through a sigmoid, curvature falls by an order of magnitude on the way, and steps that suit
    the start are too small for nearly all of the run.

    Args:
        y: the lower solution at x.
        batch: what the losses see; all data, or a few batches of them.
    """
    own = frozenset().union(*(found.kinds for found in problem.structure()))
    if own - {Structure.UPPER_SET} or not isinstance(problem.lower_set, Free):
        return look
    x, y = _descend(problem, x, y, batch)
    hyper_mu, hyper_L = hyper_curvature(problem, x, y, batch, key)
    if not (math.isfinite(hyper_L) and hyper_L > 0):
        return look
    return look._replace(hyper_mu=hyper_mu, hyper_L=hyper_L)


class _At(NamedTuple):
    x: Upper
    y: Lower
    value: Scalar
    grad: Upper
    step: Scalar
    steps: Int[Array, ""]
    falls: Array  # the last step lowered the value


@effort.briefly
def _descend(problem: Problem, x: Upper, y: Lower, batch: Batch) -> tuple[Upper, Lower]:
    """Where the hypergradient is a tenth of what it was, or after `MOST_STEPS` steps."""
    solver, linear = NewtonCG(1e-5, max_steps=500), CG(100, 1e-4)

    def look(x, y):
        found = hypergrad.implicit(problem, x, y, batch, linear=linear)
        return found.value, found.grad

    def moved(at: _At, step):
        x = problem.upper_set.project(trees.axpy(-step, at.grad, at.x))
        y = solver.solve(problem, x, at.y, batch.lower).y
        return x, y, oracles.upper_value(problem, x, y, batch.upper)

    def body(at: _At) -> _At:
        def too_long(tried):
            step, (_, _, value) = tried
            return ~(value < at.value) & (step > 1e-6 * at.step)

        def shorter(tried):
            return tried[0] / 4, moved(at, tried[0] / 4)

        step, (x, y, value) = jax.lax.while_loop(too_long, shorter, (at.step, moved(at, at.step)))
        falls = value < at.value
        value, grad = look(x, y)
        move, change = trees.sub(x, at.x), trees.sub(grad, at.grad)
        along, square = trees.dot(move, change), trees.dot(change, change)
        told = (along > 0) & (square > 0)
        secant = jnp.where(told, along / jnp.where(told, square, 1), 10 * step)
        following = jnp.clip(secant.astype(step.dtype), step / 10, 10 * step)
        new = _At(x, y, value, grad, following, at.steps + 1, falls)
        return trees.where(falls, new, at._replace(falls=falls))

    value, grad = look(x, y)
    size = trees.norm(grad)
    # A tenth of 1 + ‖x‖, like the first step of MAID.
    step = (1 + trees.norm(x).astype(size.dtype)) / (10 * jnp.where(size > 0, size, 1))
    start = _At(x, y, value, grad, step, jnp.zeros((), jnp.int32), jnp.asarray(True))

    def unfinished(at: _At):
        return at.falls & (at.steps < MOST_STEPS) & (trees.norm(at.grad) > SHARE * size)

    end = jax.lax.while_loop(unfinished, body, start)
    return end.x, end.y
