"""The shared code of GDA and MGD: `min over x of max over y of f − λᵀh`, with λ in the state.

The bilevel problem has `g = −f`, and `Y` is the part of its lower set with a simple projection.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.lower import kkt, lagrangian
from bilevel.lower.kkt import Duals
from bilevel.problem import Batch, Problem
from bilevel.schedules import Count
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate


class MultiplierState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows the maximiser of f − λᵀh
    duals: Duals  # λ
    updates: tuple[Any, Any, Any]  # memories of the x, y and dual updates


def start(
    problem: Problem, x0: Upper, y0: Lower, updates: tuple[AbstractUpdate, ...]
) -> MultiplierState:
    """The state before the first step, with x0 and y0 projected on X and Y, and λ = 0."""
    Y, coupled = lagrangian.split(problem)
    x, y = problem.upper_set.project(trees.copy(x0)), Y.project(trees.copy(y0))
    duals = kkt.no_duals(coupled, x, y)
    memories = tuple(update.init(v) for update, v in zip(updates, (x, y, duals), strict=True))
    return trees.copy(MultiplierState(jnp.zeros((), jnp.int32), x, y, duals, memories))


class Ascent(NamedTuple):
    """The result of some ascent steps in y."""

    y: Lower
    memory: Any  # memory of the y update
    grad_norm: Scalar  # of the last direction


def ascend(
    problem: Problem,
    update: AbstractUpdate,
    steps: int,
    x: Upper,
    y: Lower,
    duals: Duals,
    memory: Any,
    batch: Batch,
    k: Count,
) -> Ascent:
    """`steps` times `y ← P_Y(y + a ∇_y (f − λᵀh))`."""
    Y, coupled = lagrangian.split(problem)

    def up(carry, _):
        y, memory = carry
        g_y = oracles.lower_grad(problem, x, y, batch.lower)
        d = trees.add(g_y, lagrangian.force(coupled, x, y, duals)[1])
        y, memory = update.step(d, memory, y, k)
        return (Y.project(y), memory), trees.norm(d)

    (y, memory), sizes = jax.lax.scan(up, (y, memory), length=steps)
    return Ascent(y, memory, sizes[-1])


class Slope(NamedTuple):
    """Value and gradients of `f − λᵀh` at a point."""

    value: Scalar  # f
    x: Upper  # ∇_x f − λᵀ∂h/∂x
    duals: Duals  # −h
    report: dict[str, Scalar]


def slope(problem: Problem, x: Upper, y: Lower, duals: Duals, batch: Batch) -> Slope:
    """The gradients in x and λ; `mismatch` in the report is `‖∇_y f + ∇_y g‖`, 0 if g = −f."""
    _, coupled = lagrangian.split(problem)
    value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
    d = trees.sub(f_x, lagrangian.force(coupled, x, y, duals)[0])
    report = {
        "upper": value,
        "hypergrad_norm": trees.norm(d),
        "violation": coupled.lower_set.violation(y, x),
        "dual": trees.norm(duals),
        "mismatch": trees.norm(trees.add(f_y, oracles.lower_grad(problem, x, y, batch.lower))),
    }
    return Slope(value, d, trees.scale(-1.0, lagrangian.values(coupled, x, y)), report)
