"""Arithmetic on pytrees of arrays.

Every function keeps the dtype of its tree arguments, whatever the dtype of a scalar factor: a
float32 step size leaves a bfloat16 tree in bfloat16. Half-precision leaves are multiplied in
float32 and rounded once, so that a factor of 0.999 is not rounded to 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike


def map(fn: Callable, *trees: PyTree) -> PyTree:
    """Apply `fn` leaf by leaf to `trees` of one structure."""
    return jax.tree.map(fn, *trees)


def copy(tree: PyTree) -> PyTree[Array]:
    """A copy of the tree in new buffers, with strongly typed leaves."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), tree)


def zeros_like(tree: PyTree) -> PyTree[Array]:
    """Zeros with the same shapes, dtypes and shardings, strongly typed."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.asarray(leaf).dtype), tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b`."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: PyTree, b: PyTree) -> PyTree:
    """`a − b`."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: ScalarLike, a: PyTree) -> PyTree:
    """`factor · a`."""

    def leaf(p):
        p = jnp.asarray(p)
        return (_factor(factor, p) * _wide(p)).astype(p.dtype)

    return jax.tree.map(leaf, a)


def axpy(factor: ScalarLike, a: PyTree, b: PyTree) -> PyTree:
    """`factor · a + b`, in the dtype of `b`."""

    def leaf(p, q):
        q = jnp.asarray(q)
        wide = _wide(q)
        return (wide + _factor(factor, q) * jnp.asarray(p, wide.dtype)).astype(q.dtype)

    return jax.tree.map(leaf, a, b)


def lerp(a: PyTree, b: PyTree, weight: ScalarLike) -> PyTree:
    """`(1 − weight) · a + weight · b`, in the dtype of `a`; exactly `b` when the weight is 1."""

    def leaf(p, q):
        p = jnp.asarray(p)
        wide, w = _wide(p), _factor(weight, p)
        return ((1 - w) * wide + w * jnp.asarray(q, wide.dtype)).astype(p.dtype)

    return jax.tree.map(leaf, a, b)


def dot(a: PyTree, b: PyTree) -> Scalar:
    """Inner product of `a` and `b` over all leaves, accumulated in float32 at least."""

    def leaf(p, q):
        return jnp.sum(_wide(jnp.asarray(p)) * _wide(jnp.asarray(q)))

    terms = jax.tree.leaves(jax.tree.map(leaf, a, b))
    dtype = widest(terms)
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))


def norm(a: PyTree) -> Scalar:
    """Euclidean norm over all leaves; its derivative at zero is zero, not NaN."""
    square = dot(a, a)
    zero = square == 0
    return jnp.where(zero, jnp.zeros_like(square), jnp.sqrt(jnp.where(zero, 1, square)))


def largest(a: PyTree) -> Scalar:
    """The largest absolute value of an entry; 0 of an empty tree."""
    dtype = widest(a)
    sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in jax.tree.leaves(a)]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros((), dtype))


def where(condition: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    """`a` where the (scalar) condition holds, else `b`."""
    return jax.tree.map(lambda p, q: jnp.where(condition, p, q), a, b)


def cast_like(a: PyTree, like: PyTree) -> PyTree:
    """`a` with the dtypes of `like`."""
    return jax.tree.map(lambda p, q: jnp.asarray(p, jnp.asarray(q).dtype), a, like)


def widen(a: PyTree) -> PyTree:
    """`a` with every leaf in the widest dtype of the tree, float32 at least."""
    dtype = widest(a)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), a)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating leaf holds a NaN or an infinity."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.asarray(True)
    )


def size(tree: PyTree) -> int:
    """Number of entries in all leaves."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def widest(tree: PyTree) -> jnp.dtype:
    """The widest floating dtype among the leaves, float32 at least."""
    dtypes = [jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(tree)]
    return max([jnp.dtype(jnp.float32), *dtypes], key=lambda dtype: dtype.itemsize)


def random_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal entries in the shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)


def ravel(tree: PyTree) -> tuple[Float[Array, " size"], Callable[[Array], PyTree]]:
    """All entries as one vector in the widest dtype, and a function that restores the tree."""
    flat, unravel = ravel_pytree(widen(tree))
    return flat, lambda flat: cast_like(unravel(flat), tree)


def ravel_rows(tree: PyTree) -> tuple[Float[Array, "rows size"], Callable[[Array], PyTree]]:
    """Each row (entry of the leading axis) as a vector, and a function that restores the tree.

    The function accepts any number of rows.
    """
    _, unravel = ravel(jax.tree.map(lambda leaf: leaf[0], tree))
    return jax.vmap(lambda row: ravel(row)[0])(tree), jax.vmap(unravel)


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf


def _factor(value: ScalarLike, leaf: Array) -> Array:
    """A scalar in the dtype in which it is multiplied with the leaf."""
    return jnp.asarray(value, jnp.float32 if leaf.dtype.itemsize < 4 else leaf.dtype)
