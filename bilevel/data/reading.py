"""Reading what a user gave, and refusing what makes no sense."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from bilevel import sharding
from bilevel.data.sources import Rows, Sampler, Source, Stream, Whole

ORDERS = ("epochs", "replacement", "partition")


def as_source(name: str, value: Any, batch_size: int | None, order: str) -> Source:
    if isinstance(value, Source):
        return value
    if value is None:
        return Whole(None)
    if isinstance(value, str | bytes):
        raise TypeError(f"Data.{name} is text; arrays, a sampler or an iterable is needed.")
    if callable(value):
        return Sampler(value)
    if is_stream(value):
        return Stream(value, functools.partial(owned, name))
    arrays = jax.tree.map(functools.partial(as_array, name), value)
    n = checked_length(name, arrays)
    if batch_size is None:
        return Whole(arrays)
    check_batch_size(name, batch_size, n, "rows")
    parts = sharding.row_parts(sharding.rows(arrays))
    if order == "partition" and parts > 1 and n % batch_size:
        raise ValueError(
            f"Data.batch_size is {batch_size}, which does not divide the {n} rows of Data.{name} "
            "into equal mini-batches, and rows split over devices need them equal. The nearest "
            f"that do: {_divisors_near(n, batch_size)}."
        )
    if batch_size % parts:
        raise ValueError(
            f"Data.batch_size is {batch_size}, but the rows of Data.{name} are split over {parts} "
            f"devices. A multiple of {parts} is needed, or arrays that every device holds."
        )
    return Rows(arrays, int(batch_size), order)


def _divisors_near(n: int, size: int) -> str:
    """The divisors of n next below and above a number, in words."""
    below = next(d for d in range(size, 0, -1) if n % d == 0)
    above = next(d for d in range(size, n + 1) if n % d == 0)
    return f"{below} and {above}"


def check_batch_size(name: str, batch_size: Any, n: int, rows: str) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"Data.batch_size is {batch_size!r}; a whole number is needed.")
    if batch_size < 1:
        raise ValueError(f"Data.batch_size is {batch_size}; at least 1 is needed.")
    if batch_size > n:
        raise ValueError(
            f"Data.batch_size is {batch_size}, but Data.{name} holds {n} {rows}. "
            f"Take at most {n}, or None for all rows."
        )


def is_stream(value: Any) -> bool:
    if isinstance(value, Iterator):
        return True
    is_leaf = jax.tree.structure(value) == jax.tree.structure(0)
    return is_leaf and isinstance(value, Iterable) and not hasattr(value, "shape")


def as_array(name: str, leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):
        return sharding.with_auto_axes(leaf)
    return jnp.asarray(fitting(f"Data.{name}", np.asarray(leaf)))


def owned(name: str, batch: PyTree) -> PyTree:
    """A batch from a loader in memory of its own, as the loader may fill its buffer again."""

    def leaf(value):
        return value if isinstance(value, jax.Array) else fitting(f"Data.{name}", np.array(value))

    return jax.tree.map(leaf, batch)


def fitting(label: str, array: np.ndarray) -> np.ndarray:
    """The array, if its numbers stay what they are in the dtype that JAX gives them.

    Raises:
        TypeError: it does not hold numbers.
        ValueError: a whole number is too large for 32 bits, and `jax_enable_x64` is off.
    """
    if array.dtype.kind not in "biufcV":  # V: bfloat16 and its like
        raise TypeError(
            f"{label} holds {array.dtype.name}, and numbers are needed."
            if array.dtype.kind != "O"
            else f"{label} holds objects or numbers too large for 64 bits; numbers are needed."
        )
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    if narrow == array.dtype or not array.size:
        return array
    if array.dtype.kind in "iu":
        bounds = np.iinfo(narrow)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise ValueError(
                f"{label} holds whole numbers up to {np.abs(array).max()}, which do not fit into "
                f"{narrow.name}. Turn jax_enable_x64 on, or number what they stand for from 0."
            )
    elif array.dtype.kind == "f":
        largest = np.max(np.abs(array), where=np.isfinite(array), initial=0.0)
        if largest > np.finfo(narrow).max:
            raise ValueError(
                f"{label} holds numbers up to {largest:.3g}, which {narrow.name} makes infinite. "
                "Turn jax_enable_x64 on, or scale them."
            )
    return array


def checked_length(name: str, arrays: PyTree) -> int:
    named = [
        (f"Data.{name}{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ]
    if not named:
        raise ValueError(f"Data.{name} holds no arrays.")
    for label, leaf in named:
        if leaf.ndim == 0:
            raise ValueError(f"{label} is a single number; an array with a row a sample is needed.")
    lengths = {label: leaf.shape[0] for label, leaf in named}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{label} has {n} rows" for label, n in lengths.items())
        raise ValueError(f"Data.{name} has leaves of unequal length: {told}.")
    if 0 in lengths.values():
        raise ValueError(f"Data.{name} is empty: its leaves have 0 rows.")
    for label, leaf in named:
        _check_finite(label, leaf)
    return next(iter(lengths.values()))


def _check_finite(label: str, leaf: Array) -> None:
    if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return
    bad = jnp.isnan(leaf).reshape(leaf.shape[0], -1).any(axis=1)
    if bad.any():
        raise ValueError(
            f"{label} contains a NaN, first in row {int(bad.argmax())} ({int(bad.sum())} rows in "
            "all). Drop or fill those rows."
        )
