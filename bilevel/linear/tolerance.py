"""Conjugate gradients with an absolute tolerance, which count their steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import trees
from bilevel.typing import PyTree, Scalar, ScalarLike


class Solved(NamedTuple):
    """A solution and its accuracy."""

    v: PyTree
    residual: Scalar  # ‖H v − b‖ from the recursion, up to the drift of rounding errors
    steps: Int[Array, ""]  # products with H, without the one of the first residual


class _Conjugate(NamedTuple):
    v: PyTree
    r: PyTree  # b − H v
    p: PyTree  # search direction
    square: Scalar  # ‖r‖²
    steps: Int[Array, ""]
    convex: Array  # no direction of curvature ≤ 0 was met


def conjugate(
    product: Callable[[PyTree], PyTree],
    b: PyTree,
    v0: PyTree | None,
    tol: ScalarLike,
    max_steps: int | Int[Array, ""],
) -> Solved:
    """Conjugate gradients for `H v = b` until `‖H v − b‖ ≤ tol`, an absolute bound.

    Stops before a direction of nonpositive curvature and returns the current v. The first direction
    is always taken, so that from zero the result is never orthogonal to b. Not differentiable in
    reverse mode.

    Args:
        product: `v → H v`, keeping the dtypes of v.
        v0: starting point, shaped like b; zeros if `None`, which saves the first product.
    """
    dtype = trees.widest(b)
    b = trees.widen(b)
    tol = jnp.asarray(tol, dtype)

    def matrix(v):
        return trees.cast_like(product(v), v)

    v = trees.zeros_like(b) if v0 is None else trees.cast_like(v0, b)
    r = b if v0 is None else trees.sub(b, matrix(v))

    def body(at: _Conjugate) -> _Conjugate:
        image = matrix(at.p)
        curvature = trees.dot(at.p, image)
        convex = curvature > 0
        a = jnp.where(
            convex, at.square / jnp.where(convex, curvature, 1), (at.steps == 0).astype(dtype)
        )
        v, r = trees.axpy(a, at.p, at.v), trees.axpy(-a, image, at.r)
        square = trees.dot(r, r)
        p = trees.axpy(square / at.square, at.p, r)
        return _Conjugate(v, r, p, square, at.steps + 1, convex)

    def unfinished(at: _Conjugate):
        return (at.square > tol**2) & (at.steps < max_steps) & at.convex & jnp.isfinite(at.square)

    start = _Conjugate(v, r, r, trees.dot(r, r), jnp.zeros((), jnp.int32), jnp.asarray(True))
    end = jax.lax.while_loop(unfinished, body, start)
    return Solved(end.v, jnp.sqrt(end.square), end.steps)
