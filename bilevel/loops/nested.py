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


def nested_draws(problem: Problem, linear: AbstractLinear, lower_steps: int) -> Draws:
    """One lower batch a step, one for the cross product, the linear solver's own."""
    adjoint = 0 if problem.hypergradient is not None else linear.samples
    return Draws(upper=1, lower=lower_steps + 1 + adjoint)


def nested_price(problem: Problem, linear: AbstractLinear, lower_steps: int) -> Price:
    steps = 0 if problem.lower_step is not None else lower_steps
    if problem.hypergradient is not None:
        return Price(lower_grad=steps)
    return Price(upper_grad=1, lower_grad=steps, hvp=linear.products, cross=1)


def nested_init(
    problem: Problem,
    x0: Upper,
    y0: Lower,
    *,
    x_update: AbstractUpdate,
    y_update: AbstractUpdate,
    linear: AbstractLinear,
    warm_adjoint: bool = False,
    key: RandomKey | None = None,
) -> NestedState:
    x, y = trees.copy(x0), trees.copy(y0)
    v = trees.zeros_like(y) if warm_adjoint else None
    key = jax.random.key(0) if key is None else jnp.copy(key)
    updates = x_update.init(x), lower.lower_step(problem, y_update).init(problem, x, y)
    return NestedState(
        jnp.zeros((), jnp.int32), x, y, v, key if linear.needs_key else None, updates
    )


def nested_step(
    problem: Problem,
    state: NestedState,
    batch: Batch,
    *,
    x_update: AbstractUpdate,
    y_update: AbstractUpdate,
    linear: AbstractLinear,
    lower_steps: int,
    alternating: bool = True,
) -> tuple[NestedState, dict[str, Scalar]]:
    """One upper step; `alternating` takes the hypergradient at the new y, otherwise at the old."""
    k, x, y, v, key, (sx, sy) = state
    samples = as_samples(batch.lower, nested_draws(problem, linear, lower_steps).lower)
    key, now = (None, None) if key is None else jax.random.split(key)
    new = lower.descend(problem, x, y, samples, update=y_update, memory=sy, steps=lower_steps, k=k)
    h = hypergrad.closed_form_or_implicit(
        problem,
        x,
        new.y if alternating else y,
        Batch(batch.upper, samples.skip(lower_steps)),
        linear=linear,
        v0=v,
        key=now,
    )
    x, sx = x_update.step(h.grad, sx, x, k)
    info = {
        "upper": h.value,
        "hypergrad_norm": trees.norm(h.grad),
        "lower_grad_norm": new.grad_norm,
    }
    v = None if v is None else h.v
    return NestedState(k + 1, problem.upper_set.project(x), new.y, v, key, (sx, new.memory)), info
