"""Shardings of the parameters of a decoder on a mesh, by name.

A mesh has two axes. `data` splits batches, and also every kernel (ZeRO-3: each device stores its
part of parameters, gradients and optimiser state, and gathers a layer when it is computed).
`model` splits heads, the hidden layer of MLPs and the vocabulary. The compiler derives the rest, so
the axes have type Auto: `jax.make_mesh` creates Explicit axes, on which an unmodified model fails.
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

# The mesh axes of each leaf, by its name; for kernels of shape `(in, out)`.
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
    """`data * model` devices, those of the process group if `None`.

    Raises:
        ValueError: there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data} by {model} needs more than the {len(devices)} devices.")
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def specs(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[PartitionSpec]:
    """Partition specs of parameters, adapters, or any tree with the same names.

    The spec depends on the last two names of the path, so optimiser states and gradients are
    sharded like the parameters. An axis that a mesh axis does not divide evenly is not split, and
    neither are norms. Heads are not split: with fewer key-value heads than `model`, each device
    holds all of them.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: spec_of(config, _names(path), leaf.shape, mesh), tree
    )


def spec_of(config: Config, path: names.Path, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition spec of one leaf."""
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
    """`specs` as shardings on the mesh, for `jax.jit` and `jax.device_put`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs(config, tree, mesh),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def put(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Put parameters on the mesh."""
    return jax.device_put(tree, shardings(config, tree, mesh))


def constrain(config: Config, tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Constrain parameters, and trees derived from them, to their shardings, inside `jax.jit`.

    A loss of `constrain(config, params, mesh)` has gradients and Hessian products that are sharded
    like the parameters. Without it, the compiler may replicate the whole sum over `data`.
    """
    return jax.lax.with_sharding_constraint(tree, shardings(config, tree, mesh))


def placer(config: Config, mesh: Mesh) -> Callable[[names.Path, np.ndarray], Array]:
    """The `place` argument of `checkpoint.load`: puts each leaf on the mesh when it is read.

    With several hosts, each host fills its own devices.
    """

    def place(path: names.Path, array: np.ndarray) -> Array:
        where = NamedSharding(mesh, spec_of(config, path, array.shape, mesh))
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return place


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of batches `(batch, ...)`: tokens, masks and per-row values."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def activations(mesh: Mesh) -> NamedSharding:
    """For `ComputeOptions(pin=...)`: activations split by rows; the compiler gathers weights."""
    return NamedSharding(mesh, PartitionSpec(DATA, None, None))


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Put batches on the mesh; every process must hold the same rows.

    Raises:
        ValueError: the number of rows is not a multiple of the size of the axis `data`.
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
