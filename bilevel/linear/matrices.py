"""Projections of dense matrices and products with them, for methods that track `∂²g/∂y²`.

Each function takes one matrix; use `vmap` for a leading axis of blocks. The derivatives are right
even where eigenvalues repeat.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees


def floor_eigenvalues(matrix: Float[Array, "m m"], floor: ScalarLike) -> Float[Array, "m m"]:
    """The nearest symmetric matrix with eigenvalues of at least `floor`, in the Frobenius norm."""
    return _spectral(jnp.maximum, (matrix + matrix.T) / 2, jnp.asarray(floor, matrix.dtype))


def cap_norm(matrix: Float[Array, "n m"], cap: ScalarLike) -> Float[Array, "n m"]:
    """The nearest matrix with singular values of at most `cap`, in the Frobenius norm."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    capped = tall @ _spectral(_shrink, tall.T @ tall, jnp.asarray(cap, matrix.dtype))
    return capped.T if wide else capped


def solve(matrix: Float[Array, "m m"], b: PyTree) -> PyTree:
    """`M⁻¹ b` for M symmetric positive definite and a tree b, in the dtypes of b."""
    flat, unravel = ravel_pytree(trees.widen(b))
    found = jax.scipy.linalg.solve(matrix, flat.astype(matrix.dtype), assume_a="pos")
    return trees.cast_like(unravel(found.astype(flat.dtype)), b)


def solve_symmetric(matrix: Float[Array, "m m"], b: Float[Array, " m"]) -> Float[Array, " m"]:
    """`M⁺ b`, the least-squares solution of least norm, for M symmetric, indefinite or singular.

    Uses an eigendecomposition; eigenvalues below rounding level count as zero. The derivatives are
    those of `M⁻¹ b`. They are also right for a singular M, as long as b stays in its range.
    """

    def solve(_, b):
        w, Q = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
        size = jnp.abs(w)
        kept = size > 10 * jnp.finfo(w.dtype).eps * w.size * jnp.max(size, initial=0)
        return Q @ (jnp.where(kept, 1 / jnp.where(kept, w, 1), 0) * (Q.T @ b))

    def product(v):
        return matrix @ v

    return jax.lax.custom_linear_solve(product, b, solve, symmetric=True)


def multiply(matrix: Float[Array, "n m"], v: PyTree, like: PyTree) -> PyTree:
    """`M v` for a tree v; shaped like `like`, in its dtypes."""
    flat, _ = ravel_pytree(trees.widen(v))
    wide, unravel = ravel_pytree(trees.widen(like))
    return trees.cast_like(unravel((matrix @ flat.astype(matrix.dtype)).astype(wide.dtype)), like)


def _shrink(square: Array, cap: Array) -> Array:
    """The factor of a singular value, computed from its square."""
    above = square > cap**2
    return jnp.where(above, cap / jnp.sqrt(jnp.where(above, square, 1)), 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spectral(fn: Callable, matrix: Array, number: Array) -> Array:
    """`Q diag(fn(w, number)) Qᵀ` of a symmetric matrix `Q diag(w) Qᵀ`."""
    w, Q = jnp.linalg.eigh(matrix)
    return (Q * fn(w, number)[None, :]) @ Q.T


@_spectral.defjvp
def _spectral_jvp(fn, primals, tangents):
    """Daleckii–Krein formula: divided differences of fn, no derivatives of eigenvectors."""
    (matrix, number), (d_matrix, d_number) = primals, tangents
    w, Q = jnp.linalg.eigh(matrix)
    f, slope = jax.jvp(lambda w: fn(w, number), (w,), (jnp.ones_like(w),))
    _, by_number = jax.jvp(lambda number: fn(w, number), (number,), (d_number,))
    gap = w[:, None] - w[None, :]
    near = jnp.abs(gap) <= jnp.sqrt(jnp.finfo(w.dtype).eps) * jnp.max(jnp.abs(w))
    differences = (f[:, None] - f[None, :]) / jnp.where(near, 1, gap)
    slopes = jnp.where(near, (slope[:, None] + slope[None, :]) / 2, differences)
    change = Q @ (slopes * (Q.T @ d_matrix @ Q) + jnp.diag(by_number)) @ Q.T
    return (Q * f[None, :]) @ Q.T, change
