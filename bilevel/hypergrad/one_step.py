"""The one-step hypergradient, exact or by finite differences."""

import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper


def one_step(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    step_size: ScalarLike = 0.1,
    radius: ScalarLike | None = None,
) -> HyperGrad:
    """Hypergradient of `f(x, y − a ∇_y g(x, y))`: `∇_x f − a (∂²g/∂x∂y) ∇_y f` at the moved y.

    Biased: at `y = y*(x)` it is the Neumann series truncated after one term, `H⁻¹ ≈ a I`.

    Args:
        x, y: any pytrees of floating arrays.
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        step_size: a; in practice the lower step size.
        radius: if `None`, the cross product is exact. Otherwise it is the central difference
            `[∇_x g(x, y + e w) − ∇_x g(x, y − e w)] / (2e)` with `w = ∇_y f`, `e = radius/‖w‖`:
            no second derivatives, error of order `e²` (DARTS uses 0.01).

    Returns:
        `HyperGrad(value, grad, y=y − a ∇_y g)`.

    Reference: Liu, Simonyan, Yang. "DARTS". ICLR 2019, arXiv:1806.09055.
    """
    moved = trees.axpy(-jnp.asarray(step_size), oracles.lower_grad(problem, x, y, batch.lower), y)
    value, f_x, w = oracles.upper_grads(problem, x, moved, batch.upper)
    if radius is None:
        cross = oracles.cross(problem, x, y, w, batch.lower)
    else:
        norm = trees.norm(w)
        e = jnp.asarray(radius, norm.dtype) / jnp.where(norm > 0, norm, 1)
        ahead = oracles.lower_grad_x(problem, x, trees.axpy(e, w, y), batch.lower)
        behind = oracles.lower_grad_x(problem, x, trees.axpy(-e, w, y), batch.lower)
        cross = trees.scale(1 / (2 * e), trees.sub(ahead, behind))
    return HyperGrad(value, trees.axpy(-jnp.asarray(step_size), cross, f_x), y=moved)
