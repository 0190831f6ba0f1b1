"""Stationarity of x where the upper set ties it to y*(x), by the best multipliers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import sets, trees
from bilevel.certificates import measures
from bilevel.certificates.spectrum import DENSE_UP_TO
from bilevel.linear import AbstractLinear
from bilevel.lower.duals_at import balancing
from bilevel.lower.kkt import NEVER, Duals, Face
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, Upper

MOST = 4_000_000  # entries of the matrix of slopes


class UpperKKT(NamedTuple):
    """The KKT conditions in x, with the multipliers that fit best."""

    residual: Scalar  # ‖(∇l + Jᵀλ + Eᵀν, λ_i h_i, [h]₊, e)‖
    adjoint_residual: Scalar  # the worst of the slopes of h(x, y*(x))
    duals: Duals


def can_fit(problem: Problem, x: Upper, y: Lower) -> bool:
    """Whether the slopes of all upper constraints fit in a matrix, those in y being few."""
    if problem.lower_step is not None or problem.hypergradient is not None:
        return False
    moving, fixed = (jax.eval_shape(_values, *given) for given in _by_kind(problem, x, y))
    count, rest = (sum(part.size for part in kind) for kind in (moving, fixed))
    return count <= DENSE_UP_TO and (count + rest) * trees.size(x) <= MOST


def upper_kkt(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch,
    grad: Upper,
    *,
    linear: AbstractLinear | None = None,
    duals: Duals | None = None,
) -> UpperKKT:
    """The least `‖(∇l + Jᵀλ + Eᵀν, λ_i h_i, [h]₊, e)‖` over `λ ≥ 0` and ν, at a lower solution y.

    J and E are the slopes of the constraints along `x ↦ (x, y*(x))`: an adjoint system for each
    that moves with y. Zero exactly at a KKT point of `min l(x)` under `h(x, y*(x)) <= 0`.

    Args:
        grad: the hypergradient at x.
        linear, duals: of the lower problem, as for `measures.hypergradient`.
    """
    moving, fixed = _by_kind(problem, x, y)
    flat, unravel = trees.ravel(x)
    (h, e), (more_h, more_e) = _values(*moving), _values(*fixed)

    def slope(i):
        """Of the i-th moving constraint, a hypergradient."""
        row = problem.replace(upper=lambda x, y, _: jnp.concatenate(_values(moving[0], x, y))[i])
        found = measures.hypergradient(row, x, y, batch, linear, duals)
        residual = jnp.zeros(()) if found.residual is None else found.residual
        return trees.ravel(found.grad)[0].astype(flat.dtype), residual.astype(flat.dtype)

    count = h.size + e.size
    none = jnp.zeros((0, flat.size), flat.dtype), jnp.zeros(0, flat.dtype)
    J, residuals = jax.lax.map(slope, jnp.arange(count)) if count else none
    K = jax.jacrev(lambda flat: jnp.concatenate(_values(fixed[0], unravel(flat), y)))(flat)
    at = Face(
        jnp.concatenate([h, more_h]),
        jnp.concatenate([J[: h.size], K[: more_h.size]]),
        jnp.concatenate([e, more_e]),
        jnp.concatenate([J[h.size :], K[more_h.size :]]),
    )
    force = trees.ravel(grad)[0].astype(flat.dtype)
    fit = balancing(force, at)
    slack = jnp.where(at.h > -NEVER / 2, at.h, 0) * fit.inequalities
    left = force + at.A.T @ fit.inequalities + at.E.T @ fit.equalities
    residual = trees.norm((left, slack, jnp.maximum(at.h, 0), at.e))
    return UpperKKT(residual, jnp.max(residuals, initial=0), fit)


def _by_kind(problem: Problem, x: Upper, y: Lower):
    """The upper sets that tie x to y and those of x alone, each with x and y."""
    upper = problem.upper_set
    members = upper.sets if isinstance(upper, sets.Intersection) else (upper,)
    moving, fixed = ([m for m in members if m.moves is moves] for moves in (True, False))
    return (tuple(moving), x, y), (tuple(fixed), x, y)


def _values(members: tuple[sets.AbstractSet, ...], x: Upper, y: Lower) -> tuple[Array, Array]:
    """h and e of some upper sets, as vectors; a side without a bound is a constant, inactive."""
    found = [m.constraints(y, x) if m.moves else m.constraints(x) for m in members]
    dtype = trees.widest(x)

    def stacked(tree) -> Array:
        parts = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate([jnp.zeros(0, dtype), *parts])

    h, e = (stacked([part[k] for part in found]) for k in (0, 1))
    return jnp.where(jnp.isneginf(h), -NEVER, h), e
