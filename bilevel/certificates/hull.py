"""The point of a convex hull that is nearest to the origin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.typing import Scalar, ScalarLike


class Nearest(NamedTuple):
    """A point of a convex hull near the origin, and a bound on how much nearer another could be."""

    point: Float[Array, " n"]
    weights: Float[Array, " p"]  # of the hull's corners; they sum to 1
    gap: Scalar  # ‖point‖² exceeds the least squared norm by no more than twice this


def min_norm(
    points: Float[Array, "p n"], *, max_steps: int = 20_000, tol: ScalarLike = 1e-14
) -> Nearest:
    """`argmin ‖u‖` over the convex hull of the rows of `points`.

    Conditional gradients with pairwise steps and exact line search: weight moves from the row
    farthest along u, of those in use, to the one farthest against it, at a linear rate. Stops at
    a gap of `tol` times the largest squared norm of a row, or after `max_steps`.

    Reference: Lacoste-Julien, Jaggi. "On the global linear convergence of Frank-Wolfe optimization
    variants". NeurIPS 2015, arXiv:1511.05932.
    """
    squares = jnp.sum(points**2, axis=1)
    enough = jnp.asarray(tol, points.dtype) * jnp.max(squares)

    def ends(weights):
        u = weights @ points
        along = points @ u
        to, away = jnp.argmin(along), jnp.argmax(jnp.where(weights > 0, along, -jnp.inf))
        return u, along, to, away

    def body(at):
        weights, _, k = at
        _, along, to, away = ends(weights)
        d = points[to] - points[away]
        length = d @ d
        step = (along[away] - along[to]) / jnp.where(length > 0, length, 1)
        moved = jnp.clip(step, 0, weights[away])
        left = jnp.where(step >= weights[away], 0, weights[away] - moved)
        weights = weights.at[to].add(moved)
        weights = jnp.where(to == away, weights, weights.at[away].set(left))
        return weights, gap_of(weights), k + 1

    def gap_of(weights):
        u, along, to, _ = ends(weights)
        return u @ u - along[to]

    start = jnp.zeros_like(squares).at[jnp.argmin(squares)].set(1)
    weights, gap, _ = jax.lax.while_loop(
        lambda at: (at[1] > enough) & (at[2] < max_steps),
        body,
        (start, gap_of(start), jnp.zeros((), jnp.int32)),
    )
    return Nearest(weights @ points, weights, gap)
