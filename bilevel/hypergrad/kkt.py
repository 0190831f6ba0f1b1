"""The hypergradient of a constrained lower problem, by its active set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.lower import kkt as system
from bilevel.lower.kkt import Duals
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper


def kkt(
    problem: Problem,
    x: Upper,
    y: Lower,
    duals: Duals,
    batch: Batch = Batch(),
    *,
    weighted: bool = False,
) -> HyperGrad:
    """Hypergradient by the adjoint of the KKT system of the lower problem.

    With `L = g + λᵀh + νᵀe` and K the masked KKT matrix (`bilevel.lower.kkt`), solves
    `K (u, w, s) = (∇_y f, 0, 0)` and returns `∇_x f − (∂²L/∂x∂y) u − (∂h/∂x)ᵀ M w − (∂e/∂x)ᵀ s`.
    Exact at an exact lower solution with independent active rows and positive active multipliers;
    the error grows linearly with that of (y, λ, ν). A row counts as active if `λ_i > −h_i`, both
    scaled to lengths. It takes an upper gradient, a dense Hessian and a cross product.

    Args:
        x, y: any pytrees of floating arrays; y solves the lower problem over `lower_set`.
        duals: its multipliers, from a solver that computes them (`lower.SQP`).
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        weighted: weight every row by its multiplier and slack, `λ_i (A dy + B dx)_i = s_i dλ_i`,
            instead of the mask. Both agree if the mask is right and the slacks are exact. At a
            minimiser of `g − t Σ log(−h_i)`, with `λ_i = t/(−h_i)`, this is the hypergradient of
            that log-barrier problem. It is singular at a kink.

    Returns:
        `HyperGrad(value, grad, v=u, residual, y=y, sc_margin)`; `sc_margin = min_i max(λ_i, −h_i)`
        is near zero (say, below 1e-6) at a kink of the hyper-objective, where `grad` is the
        gradient of one side.

    References: Blondel et al. "Efficient and modular implicit differentiation". NeurIPS 2022,
    arXiv:2105.15183. Khanduri et al. "Linearly constrained bilevel optimization: a smoothed
    implicit gradient approach". ICML 2023.
    """
    value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
    H = system.hessian(problem, x, y, duals, batch.lower)
    h, A, e, E = system.face(problem, x, y)
    duals = Duals(duals.inequalities.astype(H.dtype), duals.equalities.astype(H.dtype))
    mask = system.active(A, -h, duals.inequalities, system.scale_of(H))
    flat, unravel = trees.ravel(f_y)
    right = flat.astype(H.dtype), jnp.zeros_like(h), jnp.zeros_like(e)
    if weighted:
        weights, (u, w, s) = duals.inequalities, _weighed(H, A, E, duals, -h, right)
    else:
        weights, (u, w, s) = mask.astype(H.dtype), system.solve(H, A, E, mask, right)
    v = unravel(u.astype(flat.dtype))
    cross = oracles.cross(problem, x, y, v, batch.lower)
    if problem.lower_set.moves:
        cross = trees.add(cross, _push(problem, x, y, v, duals, Duals(weights * w, s)))
    residual = jnp.linalg.norm(_applied(H, A, E, weights, u, w, s) - right[0])
    margin = system.margin(A, -h, duals.inequalities)
    grad = trees.sub(f_x, cross)
    return HyperGrad(value, grad, v, residual, y=y, sc_margin=margin)


def _weighed(H, A, E, duals: Duals, slack, right) -> tuple[Array, Array, Array]:
    """The adjoint of `[[H, Aᵀ, Eᵀ], [ΛA, −S, 0], [E, 0, 0]]`, a matrix that is not symmetric."""
    on = slack < system.NEVER / 2
    along, slack = jnp.where(on, duals.inequalities, 0), jnp.where(on, slack, 1)
    empty = jnp.zeros((A.shape[0], E.shape[0]), H.dtype)
    K = jnp.block(
        [
            [H, A.T, E.T],
            [along[:, None] * A, jnp.diag(-slack), empty],
            [E, empty.T, jnp.zeros((E.shape[0], E.shape[0]), H.dtype)],
        ]
    )
    return system.split(jnp.linalg.solve(K.T, jnp.concatenate(right)), H.shape[0], A.shape[0])


def _applied(H, A, E, weights, u, w, s) -> Array:
    return H @ u + A.T @ (weights * w) + E.T @ s


def _push(problem: Problem, x, y, v, duals: Duals, forces: Duals) -> Upper:
    """The terms of the constraints beside the cross product, shaped like x.

    `(∂²(λᵀh + νᵀe)/∂x∂y) v + (∂h/∂x)ᵀ w + (∂e/∂x)ᵀ s`.
    """

    def pushed(x):
        _, slope = jax.jvp(lambda y: system.weighed(problem, x, y, duals), (y,), (v,))
        return slope + system.weighed(problem, x, y, forces)

    return jax.grad(pushed)(x)
