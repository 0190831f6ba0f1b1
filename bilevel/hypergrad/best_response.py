"""Hypergradient through a model of the best response."""

from typing import Any

import jax

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.lower.responses import AbstractResponse
from bilevel.problem import Batch, Problem
from bilevel.typing import Upper


def best_response(
    problem: Problem, response: AbstractResponse, phi: Any, x: Upper, batch: Batch = Batch()
) -> HyperGrad:
    """Hypergradient of `f(x, ŷ_φ(x))`: `∇_x f + (∂ŷ_φ/∂x)ᵀ ∇_y f` at `y = ŷ_φ(x)`.

    It takes one upper gradient and does not call the lower loss. It is exact if the model has the
    value and the Jacobian of y* at x; the error grows linearly with the errors of both.

    Args:
        response, phi: a model of `bilevel.responses` and its parameters.
        x: any pytree of floating arrays.
        batch: `Batch(upper, lower)`; only its upper half is used.

    Returns:
        `HyperGrad(value, grad, y=ŷ_φ(x))`.

    Reference: MacKay, Vicol, Lorraine, Duvenaud, Grosse. "Self-Tuning Networks". ICLR 2019,
    arXiv:1903.03088.
    """
    y, pull = jax.vjp(lambda x: response(phi, x), x)
    value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
    (through_y,) = pull(f_y)
    return HyperGrad(value, trees.add(f_x, through_y), y=y)
