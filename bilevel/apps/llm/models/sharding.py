"""Where the parameters of a decoder lie on a mesh, by name.

A mesh has two axes: `data` splits batches, and every kernel once more (ZeRO-3: each device holds
its part of parameters, gradients and optimiser state, and gathers a layer when it is computed);
`model` splits heads, the hidden layer of MLPs and the vocabulary. The compiler derives the rest, so
axes are of the kind Auto: `jax.make_mesh` makes Explicit ones, over which an unmodified model
fails.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from bilevel.apps.llm.models import names, parameters
from bilevel.apps.llm.models.config import Config

DATA, MODEL = "data", "model"

# How the axes of a leaf are split; a kernel `(in, out)` by what follows it.
SPLITS: dict[tuple[str, str], tuple[str | None, ...]] = {
    **{(name, "kernel"): (DATA, MODEL) for name in ("query", "key", "value", "gate", "up", "head")},
    **{(name, "bias"): (MODEL,) for name in ("query", "key", "value", "gate", "up")},
    **{(name, "a"): (DATA, None) for name in ("query", "key", "value", "gate", "up")},
    **{(name, "b"): (None, MODEL) for name in ("query", "key", "value", "gate", "up")},
    **{(name, "kernel"): (MODEL, DATA) for name in ("output", "down")},
    **{(name, "a"): (MODEL, None) for name in ("output", "down")},
    **{(name, "b"): (None, DATA) for name in ("output", "down")},
}
EMBED = (MODEL, DATA)


def make_mesh(data: int, model: int = 1, devices: Any = None) -> Mesh:
    """`data * model` devices, those of the process group when absent.

    Raises:
        ValueError: there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data} by {model} needs more than the {len(devices)} devices.")
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def specs(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[PartitionSpec]:
    """How the leaves of parameters, adapters, or anything with their names are split.

    A leaf is split by the last two names of its path, so optimiser states and gradients fall beside
    the parameters. An axis that a mesh axis does not divide evenly stays whole, and so do norms.
    Heads are not cut: with fewer key-value heads than `model`, each device holds all of them.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: spec_of(config, _names(path), leaf.shape, mesh), tree
    )


def spec_of(config: Config, path: names.Path, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one leaf is split."""
    named = [str(key) for key in path if not isinstance(key, int)]
    if named[-1:] == ["embed"]:
        split = EMBED
    else:
        split = SPLITS.get((named[-2], named[-1]), ()) if len(named) > 1 else ()
    if len(shape) < len(split):
        return PartitionSpec()
    split = (None,) * (len(shape) - len(split)) + tuple(split)  # of stacked layers, the first whole
    heads = {"query": config.heads, "output": config.heads}
    heads |= {"key": config.kv_heads, "value": config.kv_heads}
    units = heads.get(named[-2] if len(named) > 1 else "", 0)

    def fits(n: int, axis: str | None) -> bool:
        if axis is None:
            return False
        whole = units if axis == MODEL and units else n
        return n % mesh.shape[axis] == 0 and whole % mesh.shape[axis] == 0

    return PartitionSpec(
        *(axis if fits(n, axis) else None for n, axis in zip(shape, split, strict=True))
    )


def shardings(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """`specs` on the mesh, as `jax.jit` and `jax.device_put` take them."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs(config, tree, mesh),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def put(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Parameters on the mesh."""
    return jax.device_put(tree, shardings(config, tree, mesh))


def constrain(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """In compiled code: parameters, and what is derived from them, in their places.

    A loss of `pin(config, params, mesh)` has gradients and Hessian products that are split like the
    parameters; otherwise the compiler may give every device the whole sum over `data`.
    """
    return jax.lax.with_sharding_constraint(tree, shardings(config, tree, mesh))


def placer(config: Config, mesh: Mesh) -> Callable[[names.Path, np.ndarray], Array]:
    """The `place` of `checkpoint.load`: each device is given its part of a leaf as it is read.

    On several hosts each gives its own devices their parts.
    """

    def place(path: names.Path, array: np.ndarray) -> Array:
        where = NamedSharding(mesh, spec_of(config, path, array.shape, mesh))
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return place


def rows(mesh: Mesh) -> NamedSharding:
    """Where batches lie: `(batch, ...)`, for tokens, masks and what is one a row."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def activations(mesh: Mesh) -> NamedSharding:
    """For `ComputeOptions(pin=...)`: activations split by rows; the compiler gathers weights."""
    return NamedSharding(mesh, PartitionSpec(DATA, None, None))


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Batches on the mesh, the same rows on every process.

    Raises:
        ValueError: the rows do not divide over the axis `data`.
    """
    parts = mesh.shape[DATA]
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] % parts:
            raise ValueError(
                f"a batch of shape {jnp.shape(leaf)} cannot be split over {parts} devices; a "
                f"multiple of {parts} rows is needed."
            )
    return jax.device_put(tree, rows(mesh))


def _names(path) -> names.Path:
    known = (jax.tree_util.DictKey, jax.tree_util.SequenceKey, jax.tree_util.GetAttrKey)
    return tuple(_name(key) for key in path if isinstance(key, known))


def _name(key) -> str | int:
    return key.name if isinstance(key, jax.tree_util.GetAttrKey) else parameters.name_of(key)
