"""Arithmetic on pytrees of arrays.

Every function keeps the dtype of its tree arguments: a scalar factor is cast to the leaf it
multiplies, so a float32 step size leaves a bfloat16 tree in bfloat16.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar, ScalarLike


def map(fn: Callable, *trees: PyTree) -> PyTree:
    """Apply `fn` leaf by leaf."""
    return jax.tree.map(fn, *trees)


def copy(tree: PyTree) -> PyTree[Array]:
    """The same values, strongly typed, in buffers of their own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), tree)


def zeros_like(tree: PyTree) -> PyTree[Array]:
    return jax.tree.map(jnp.zeros_like, tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def sub(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


def neg(a: PyTree) -> PyTree:
    return jax.tree.map(jnp.negative, a)


def scale(factor: ScalarLike, a: PyTree) -> PyTree:
    """`factor · a`."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, a)


def axpy(factor: ScalarLike, a: PyTree, b: PyTree) -> PyTree:
    """`factor · a + b`, in the dtype of `b`."""
    return jax.tree.map(
        lambda p, q: q + jnp.asarray(factor, q.dtype) * jnp.asarray(p, q.dtype), a, b
    )


def lerp(a: PyTree, b: PyTree, weight: ScalarLike) -> PyTree:
    """`(1 − weight) · a + weight · b`, in the dtype of `a`."""
    return axpy(weight, sub(cast_like(b, a), a), a)


def dot(a: PyTree, b: PyTree) -> Scalar:
    """Inner product over all leaves, accumulated in float32 at least."""
    terms = jax.tree.leaves(jax.tree.map(lambda p, q: jnp.sum(_wide(p) * _wide(q)), a, b))
    dtype = widest(terms)
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))


def norm(a: PyTree) -> Scalar:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(a, a))


def where(condition: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    """`a` where the (scalar) condition holds, else `b`."""
    return jax.tree.map(lambda p, q: jnp.where(condition, p, q), a, b)


def cast_like(a: PyTree, like: PyTree) -> PyTree:
    """`a` with the dtypes of `like`."""
    return jax.tree.map(lambda p, q: jnp.asarray(p, q.dtype), a, like)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating leaf holds a NaN or an infinity."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.asarray(True)
    )


def size(tree: PyTree) -> int:
    """Number of entries in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def widest(tree: PyTree) -> jnp.dtype:
    """The widest floating dtype among the leaves, float32 at least."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return max([jnp.dtype(jnp.float32), *dtypes], key=lambda dtype: dtype.itemsize)


def random_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal entries in the shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, draws)


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf
