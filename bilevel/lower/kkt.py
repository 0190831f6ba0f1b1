"""Active sets and KKT systems of the lower problem, in matrices of a fixed size.

At a lower point y with multipliers λ of `h(x, y) <= 0` and ν of `e(x, y) = 0`, with
`H = ∂²(g + λᵀh + νᵀe)/∂y²`, `A = ∂h/∂y`, `E = ∂e/∂y` and M the diagonal mask of active rows,

    K = [[H, AᵀM, Eᵀ], [MA, −(I − M), 0], [E, 0, 0]]

is symmetric, has a size that no active set changes, and is regular iff H is positive definite along
the active face and the active rows are independent. With L the Lagrangian,
`K (dy, dλ, dν) = −(∂²L/∂y∂x, M ∂h/∂x, ∂e/∂x) dx` is the derivative of the solution wherever every
active multiplier is positive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel import oracles, trees
from bilevel.linear import matrices
from bilevel.problem import Problem
from bilevel.sets import Constraints
from bilevel.typing import Lower, Scalar, Upper


class Duals(NamedTuple):
    """Multipliers, in the order of the ravelled `lower_set.constraints` (that of its `rows`)."""

    inequalities: Float[Array, " k"]  # λ >= 0
    equalities: Float[Array, " p"]  # ν


class Face(NamedTuple):
    """The constraints at a point and their slopes in the ravelled y."""

    h: Float[Array, " k"]  # h(x, y); below zero inside
    A: Float[Array, "k m"]  # ∂h/∂y
    e: Float[Array, " p"]  # e(x, y)
    E: Float[Array, "p m"]  # ∂e/∂y


NEVER = 1e20  # the slack of a constraint that is switched off by an infinite bound


def constraints(problem: Problem, x: Upper, y: Lower) -> tuple[Array, Array]:
    """`h(x, y)` and `e(x, y)` as vectors; a side with an infinite bound is a constant, inactive."""
    values: Constraints = problem.lower_set.constraints(y, x)
    dtype = trees.widest(y)
    h, e = (_vector(part, dtype) for part in values)
    return jnp.where(jnp.isfinite(h), h, -NEVER), e


def face(problem: Problem, x: Upper, y: Lower) -> Face:
    """The constraints linearised at y."""
    flat, unravel = trees.ravel(y)

    def values(flat):
        return constraints(problem, x, unravel(flat))

    (h, e), (A, E) = values(flat), jax.jacfwd(values)(flat)
    return Face(h, A, e, E)


def no_duals(problem: Problem, x: Upper, y: Lower) -> Duals:
    """Zeros, as many as there are constraints."""
    return Duals(*(jnp.zeros_like(part) for part in constraints(problem, x, y)))


def weighed(problem: Problem, x: Upper, y: Lower, duals: Duals) -> Scalar:
    """`λᵀh + νᵀe`."""
    h, e = constraints(problem, x, y)
    return duals.inequalities.astype(h.dtype) @ h + duals.equalities.astype(e.dtype) @ e


def hessian(problem: Problem, x: Upper, y: Lower, duals: Duals, batch) -> Float[Array, "m m"]:
    """`∂²(g + λᵀh + νᵀe)/∂y²` over the ravelled y, in float32 at least."""
    H = oracles.dense_hessian(problem, x, y, batch).astype(trees.widest(y))
    if problem.lower_set.linear:
        return H
    flat, unravel = trees.ravel(y)
    return H + jax.hessian(lambda flat: weighed(problem, x, unravel(flat), duals))(flat)


def active(A: Array, slack: Array, multipliers: Array, scale: Array) -> Bool[Array, " k"]:
    """The primal-dual prediction `λ_i > −h_i`, both told as lengths.

    Exact where strict complementarity holds and the solve is accurate enough; unlike tolerances, it
    calls exactly one of the two small.

    Args:
        scale: of the Hessian, so that `λ ‖A_i‖ / scale` is a length, as `slack / ‖A_i‖` is.
    """
    return multipliers * jnp.sum(A * A, axis=1) > scale * slack


def scale_of(H: Array) -> Array:
    """The largest entry of a matrix, or 1 where all are zero."""
    largest = jnp.max(jnp.abs(H), initial=0)
    return jnp.where(largest > 0, largest, 1)


def margin(A: Array, slack: Array, multipliers: Array) -> Scalar:
    """`min_i max(λ_i, −h_i)`: zero at a kink of y*, infinite without inequalities."""
    real = jnp.any(A != 0, axis=1)
    return jnp.min(jnp.where(real, jnp.maximum(multipliers, slack), jnp.inf), initial=jnp.inf)


def matrix(H: Array, A: Array, E: Array, mask: Bool[Array, " k"]) -> Float[Array, "s s"]:
    """The masked KKT matrix K."""
    k, p = A.shape[0], E.shape[0]
    M = mask.astype(H.dtype)
    MA = M[:, None] * A
    empty = jnp.zeros((k, p), H.dtype)
    return jnp.block(
        [
            [H, MA.T, E.T],
            [MA, jnp.diag(M - 1), empty],
            [E, empty.T, jnp.zeros((p, p), H.dtype)],
        ]
    )


def solve(
    H: Array, A: Array, E: Array, mask: Bool[Array, " k"], right: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """`K⁻¹` times a right-hand side in three parts; where K is singular, the shortest solution."""
    found = matrices.solve_symmetric(matrix(H, A, E, mask), jnp.concatenate(right))
    return split(found, H.shape[0], A.shape[0])


def split(z: Array, m: int, k: int) -> tuple[Array, Array, Array]:
    """The parts of y, of the inequalities and of the equalities."""
    return z[:m], z[m : m + k], z[m + k :]


def _vector(tree, dtype) -> Array:
    pieces = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, dtype), *pieces])
