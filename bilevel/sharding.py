"""Several devices: arrays split over a mesh, and everything else beside them.

Methods know nothing of devices: the compiler derives where a step computes from where x, y and
the data lie. What is left to do is to put things on the mesh, and to keep them in their places.
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
    """Put variables on a mesh: each leaf split along its longest axis that divides evenly.

    A leaf without such an axis is copied to every device. Made for model parameters; rows of data
    go on a mesh with `jax.device_put(data, NamedSharding(mesh, PartitionSpec("rows")))`.

    Args:
        tree: arrays, the same on every process where there are several.
        axis: the axis or axes of the mesh to split over; all of them when absent.
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
    """The mesh that leaves of a tree lie on, if any do."""
    places = map(_on_mesh, jax.tree.leaves(tree))
    return next((_mesh(place) for place in places if place is not None), None)


def with_auto_axes(tree: PyTree) -> PyTree:
    """The same arrays, with all placement left to the compiler, in shardings written its way.

    `jax.make_mesh` makes Explicit axes, over which every ambiguous product would have to say where
    its result goes; here the losses and the methods do not say.
    """

    def place(leaf):
        old = _on_mesh(leaf)
        if old is None:
            return leaf
        new = NamedSharding(_auto(_mesh(old)), _plain(old.spec), memory_kind=old.memory_kind)
        return leaf if new == old else jax.device_put(leaf, new)

    return jax.tree.map(place, tree)


def replicate_on(tree: PyTree, mesh: Mesh | None, beside: PyTree = None) -> PyTree:
    """Every leaf on the mesh: what is there stays; the rest is copied to every device.

    A leaf shaped like one of `beside`, or a stack of such, is split as that one is: a momentum or
    a table lies beside the variable it belongs to. Nothing happens without a mesh.
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
    """Where the leaves lie, as a static argument of compiled code; `None` without a mesh."""
    found = tuple(map(_on_mesh, jax.tree.leaves(tree)))
    return found if any(found) else None


def constrain(tree: PyTree, places: tuple[NamedSharding | None, ...] | None) -> PyTree:
    """In compiled code: leaves in the places that `places` told."""
    if places is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    put = jax.lax.with_sharding_constraint
    pinned = [leaf if s is None else put(leaf, s) for leaf, s in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(treedef, pinned)


def constrain_everywhere(leaf: Array, places: tuple[NamedSharding | None, ...] | None) -> Array:
    """In compiled code: a copy on every device that `places` told, which every process can read."""
    mesh = next((s.mesh for s in places or () if s is not None), None)
    return constrain(leaf, mesh and (NamedSharding(mesh, PartitionSpec()),))


def rows(tree: PyTree) -> tuple[NamedSharding, ...] | None:
    """The places of arrays whose rows are all split over the same devices; `None` of others."""
    leaves = jax.tree.leaves(tree)
    found = tuple(place for leaf in leaves if (place := _on_mesh(leaf)) is not None)
    alike = len(found) == len(leaves) and len({(p.mesh, p.spec[:1]) for p in found}) == 1
    return found if alike and row_parts(found) > 1 else None


def row_parts(places: Iterable[NamedSharding | None] | None) -> int:
    """Over how many devices the rows are split."""
    first = next(iter(places or ()), None)
    if first is None or not first.spec or first.spec[0] is None:
        return 1
    names = first.spec[0] if isinstance(first.spec[0], tuple) else (first.spec[0],)
    return math.prod(first.mesh.shape[name] for name in names)


def leading(place: NamedSharding) -> NamedSharding:
    """The place of something with the rows' axis alone, such as their numbers."""
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[:1]))


def with_device_axis(place: NamedSharding) -> NamedSharding:
    """The place of rows on two axes: which device, and where on it."""
    first, *rest = place.spec
    spec = PartitionSpec(first, None, *rest)
    return NamedSharding(place.mesh, spec, memory_kind=place.memory_kind)


def any_process(flags: Iterable[Any]) -> list[bool]:
    """What any of the processes says, so that all of them do the same."""
    told = [bool(flag) for flag in flags]
    if jax.process_count() == 1:
        return told
    from jax.experimental import multihost_utils

    return np.any(multihost_utils.process_allgather(np.array(told)), axis=0).tolist()


def _on_mesh(leaf: Any) -> NamedSharding | None:
    """The sharding of an array that lies on several devices."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    found = leaf.sharding
    return found if isinstance(found, NamedSharding) and found.mesh.size > 1 else None


def _put(leaf: Any, place: NamedSharding) -> Array:
    """An array that all processes hold, on a mesh that may reach over all of them."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf if place.is_fully_addressable else np.asarray(leaf), place)


def _plain(spec: Iterable[Any]) -> PartitionSpec:
    """As the compiler writes it: a name for a tuple of one, nothing at the end."""
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
