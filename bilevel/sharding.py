"""Placement on several devices: arrays split over a mesh, the rest replicated.

Methods contain no device code: the compiler derives the placement of a step from the shardings of
x, y and the data. This module puts arrays on the mesh and keeps their shardings fixed. A `tree` is
any pytree of arrays; a `place` is the sharding of one array, and `places` are those of a tree's
leaves, in their order, `None` for a leaf that is on no mesh.
"""

import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def split(tree: PyTree, mesh: Mesh, axis: str | tuple[str, ...] | None = None) -> PyTree[Array]:
    """Put variables on a mesh, each leaf split along its longest axis that divides evenly.

    A leaf without such an axis is copied to every device. This is meant for model parameters. Put
    rows of data on a mesh with
    `jax.device_put(data, NamedSharding(mesh, PartitionSpec("rows")))`.

    Args:
        tree: arrays; with several processes, the same on each of them.
        axis: the axis or axes of the mesh to split over. Default: all of them.
    """
    axes = mesh.axis_names if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)
    parts = math.prod(mesh.shape[name] for name in axes)

    def place(leaf):
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        even = [i for i, n in enumerate(leaf.shape) if n > 0 and n % parts == 0]
        spec: list[Any] = [None] * leaf.ndim
        if even:
            spec[max(even, key=leaf.shape.__getitem__)] = axes
        return jax.device_put(leaf, NamedSharding(mesh, _plain(spec)))

    return jax.tree.map(place, tree)


# --- for the driver ------------------------------------------------------------------------


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh of the first leaf that is on one; `None` if no leaf is."""
    places = map(_on_mesh, jax.tree.leaves(tree))
    return next((_mesh(place) for place in places if place is not None), None)


def with_auto_axes(tree: PyTree) -> PyTree:
    """The same arrays with Auto mesh axes and normalised partition specs.

    `jax.make_mesh` creates Explicit axes, which require an output sharding for every ambiguous
    product. Losses and methods do not give one, so the compiler has to choose.
    """

    def place(leaf):
        old = _on_mesh(leaf)
        if old is None:
            return leaf
        new = NamedSharding(_auto(_mesh(old)), _plain(old.spec), memory_kind=old.memory_kind)
        return leaf if new == old else jax.device_put(leaf, new)

    return jax.tree.map(place, tree)


def replicate_on(tree: PyTree, mesh: Mesh | None, beside: PyTree = None) -> PyTree:
    """Put every leaf on the mesh; leaves that are not there yet are copied to every device.

    A leaf with the shape of a leaf of `beside`, or a stack of these, gets the sharding of that
    leaf: a momentum or a table is split like its variable. Without a mesh the tree is unchanged.
    """
    variables = {id(leaf) for leaf in jax.tree.leaves(beside)}
    if mesh is None:
        return tree
    models = [
        (leaf.shape, s.spec)
        for leaf in jax.tree.leaves(beside)
        if (s := _on_mesh(leaf)) is not None and not s.is_fully_replicated
    ]

    def place(leaf):
        if isinstance(leaf, Tracer) or not eqx.is_array_like(leaf) or _on_mesh(leaf) is not None:
            return leaf
        shape, spec = np.shape(leaf), PartitionSpec()
        for model, split in [] if id(leaf) in variables else models:
            stacked = len(shape) - len(model)
            if stacked >= 0 and shape[stacked:] == model:
                spec = PartitionSpec(*[None] * stacked, *split)
        return _put(leaf, NamedSharding(_auto(mesh), spec))

    return jax.tree.map(place, with_auto_axes(tree))


def shardings_of(tree: PyTree) -> tuple[NamedSharding | None, ...] | None:
    """The shardings of the leaves, as a static argument of `jax.jit`; `None` without a mesh."""
    found = tuple(map(_on_mesh, jax.tree.leaves(tree)))
    return found if any(found) else None


def constrain(tree: PyTree, places: tuple[NamedSharding | None, ...] | None) -> PyTree:
    """Constrain the leaves to the shardings `places`, inside `jax.jit`."""
    if places is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    put = jax.lax.with_sharding_constraint
    pinned = [leaf if s is None else put(leaf, s) for leaf, s in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(treedef, pinned)


def constrain_everywhere(leaf: Array, places: tuple[NamedSharding | None, ...] | None) -> Array:
    """Replicate a leaf over the mesh of `places`, inside `jax.jit`; every process can read it."""
    mesh = next((s.mesh for s in places or () if s is not None), None)
    return constrain(leaf, mesh and (NamedSharding(mesh, PartitionSpec()),))


def rows(tree: PyTree) -> tuple[NamedSharding, ...] | None:
    """The shardings of arrays whose rows are all split over the same devices, else `None`."""
    leaves = jax.tree.leaves(tree)
    found = tuple(place for leaf in leaves if (place := _on_mesh(leaf)) is not None)
    alike = len(found) == len(leaves) and len({(p.mesh, p.spec[:1]) for p in found}) == 1
    return found if alike and row_parts(found) > 1 else None


def row_parts(places: Iterable[NamedSharding | None] | None) -> int:
    """The number of devices that the rows are split over."""
    first = next(iter(places or ()), None)
    if first is None or not first.spec or first.spec[0] is None:
        return 1
    names = first.spec[0] if isinstance(first.spec[0], tuple) else (first.spec[0],)
    return math.prod(first.mesh.shape[name] for name in names)


def leading(place: NamedSharding) -> NamedSharding:
    """The sharding of an array that has only the rows' axis, such as the row numbers."""
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[:1]))


def with_device_axis(place: NamedSharding) -> NamedSharding:
    """The sharding of rows that are reshaped to two axes: the device and the row on it."""
    first, *rest = place.spec
    spec = PartitionSpec(first, None, *rest)
    return NamedSharding(place.mesh, spec, memory_kind=place.memory_kind)


def any_process(flags: Iterable[Any]) -> list[bool]:
    """The logical or of the flags over all processes, so that all of them branch alike."""
    local = [bool(flag) for flag in flags]
    if jax.process_count() == 1:
        return local
    from jax.experimental import multihost_utils

    return np.any(multihost_utils.process_allgather(np.array(local)), axis=0).tolist()


def _on_mesh(leaf: Any) -> NamedSharding | None:
    """The sharding of an array on several devices, else `None`."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    found = leaf.sharding
    return found if isinstance(found, NamedSharding) and found.mesh.size > 1 else None


def _put(leaf: Any, place: NamedSharding) -> Array:
    """Put an array that every process holds on a mesh that may span all processes."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf if place.is_fully_addressable else np.asarray(leaf), place)


def _plain(spec: Iterable[Any]) -> PartitionSpec:
    """The spec in the compiler's form: a name for a 1-tuple, no trailing `None`."""
    parts = [
        part[0] if isinstance(part, tuple) and len(part) == 1 else part or None for part in spec
    ]
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def _auto(mesh: Mesh) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _mesh(place: NamedSharding) -> Mesh:
    assert isinstance(place.mesh, Mesh)  # of an array that exists, not of a traced one
    return place.mesh
