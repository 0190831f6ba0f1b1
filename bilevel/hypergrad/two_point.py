"""Gradient of a smoothed function from two of its values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.typing import PyTree, ScalarLike


def sphere(key: jax.Array, like: PyTree) -> PyTree:
    """A direction drawn uniformly from the unit sphere of all entries of `like`."""
    w = trees.random_like(key, like)
    return trees.scale(1 / trees.norm(w), w)


def two_point(
    value: Callable[[PyTree], Any],
    x: PyTree,
    key: jax.Array,
    radius: ScalarLike,
    *,
    has_aux: bool = False,
) -> Any:
    """Unbiased estimate of `∇F_r(x)`, where `F_r(x)` is the mean of F over the ball of radius r.

    `n/(2r) (F(x + r w) − F(x − r w)) w` with w uniform on the unit sphere and n the entries of x.
    For an L-Lipschitz F, smooth or not, `|F_r − F| ≤ L r`, and ∇F_r lies in the r-Goldstein
    subdifferential of F. The second moment is `O(n L²)`. Errors of the values of at most a add
    `a n / r` to the bias and `(a n / r)²` to the second moment.

    Args:
        value: F, a scalar function of trees shaped like x.
        x: any pytree of floating arrays.
        key: random key for w.
        radius: r, positive.
        has_aux: whether F returns `(scalar, extra)`.

    Returns:
        A tree like x. With `has_aux`, that tree and the pair of extras at x + r w and x − r w.

    Reference: Shamir. "An optimal algorithm for bandit and zero-order convex optimization with
    two-point feedback". JMLR 2017, arXiv:1507.08752.
    """
    w, r = sphere(key, x), jnp.asarray(radius)
    ends = [value(trees.axpy(sign * r, w, x)) for sign in (1, -1)]
    (ahead, behind), extras = zip(*ends, strict=True) if has_aux else (ends, None)
    slope = (ahead - behind) / (2 * r.astype(ahead.dtype))
    grad = trees.scale(trees.size(x) * slope, w)
    return (grad, tuple(extras)) if extras is not None else grad
