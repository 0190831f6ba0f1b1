"""Parameters of a decoder: shapes, initialisation, and the two layouts of the layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

from bilevel.apps.llm.models.config import Config, Layers

Params = dict[str, Any]


def init(
    config: Config,
    key: Array,
    *,
    layers: Layers = Layers.LIST,
    dtype: DTypeLike = jnp.float32,
    deviation: float = 0.02,
) -> Params:
    """Random parameters: normal kernels, zero biases, unit scales."""
    shapes, leaf_of = jax.tree.flatten(shapes_of(config, layers), is_leaf=_is_shape)
    lasts = [path[-1] for path, _ in paths(shapes_of(config, layers))]
    keys, leaves = jax.random.split(key, len(shapes)), []
    for last, shape, one in zip(lasts, shapes, keys, strict=True):
        if last == "bias":
            leaves.append(jnp.zeros(shape, dtype))
        elif last == "scale":
            leaves.append(jnp.ones(shape, dtype))
        else:
            noise = jax.random.normal(one, shape, jnp.float32) * jnp.float32(deviation)
            leaves.append(noise.astype(dtype))
    return jax.tree.unflatten(leaf_of, leaves)


def abstract(
    config: Config, *, layers: Layers = Layers.LIST, dtype: DTypeLike = jnp.float32
) -> PyTree[jax.ShapeDtypeStruct]:
    """The parameter tree of `jax.ShapeDtypeStruct`, to shard and compile without allocation."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes_of(config, layers),
        is_leaf=_is_shape,
    )


def size(config: Config) -> int:
    """The number of parameters."""
    return sum(int(np.prod(shape)) for _, shape in paths(shapes_of(config)))


def layout_of(params: Params) -> Layers:
    return Layers.SCAN if isinstance(params["layers"], dict) else Layers.LIST


def stack(params: Params) -> Params:
    """The same parameters for a scan over layers."""
    if layout_of(params) is Layers.SCAN:
        return params
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])
    return {**params, "layers": stacked}


def unstack(params: Params) -> Params:
    """The same parameters as a list of layers."""
    if layout_of(params) is Layers.LIST:
        return params
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(count)]
    return {**params, "layers": layers}


def shapes_of(config: Config, layers: Layers = Layers.LIST) -> dict[str, Any]:
    """The parameter tree with the shape of each array as a tuple."""
    c, queries, values = config, config.heads * config.head_dim, config.kv_heads * config.head_dim

    def normed(n):
        return {"scale": (n,), "bias": (n,)} if c.layer_norm else {"scale": (n,)}

    def linear(into, out, bias):
        return {"kernel": (into, out), "bias": (out,)} if bias else {"kernel": (into, out)}

    layer = {
        "attention_norm": normed(c.width),
        "query": linear(c.width, queries, c.qkv_bias),
        "key": linear(c.width, values, c.qkv_bias),
        "value": linear(c.width, values, c.qkv_bias),
        "output": linear(queries, c.width, c.output_bias),
        "mlp_norm": normed(c.width),
        "up": linear(c.width, c.inner, c.mlp_bias),
        "down": linear(c.inner, c.width, c.mlp_bias),
    }
    if c.gated:
        layer["gate"] = linear(c.width, c.inner, c.mlp_bias)
    if c.qk_norm:
        layer |= {"query_norm": {"scale": (c.head_dim,)}, "key_norm": {"scale": (c.head_dim,)}}
    if layers is Layers.SCAN:
        stacked = jax.tree.map(lambda shape: (c.layers, *shape), layer, is_leaf=_is_shape)
    else:
        stacked = [layer] * c.layers
    tree = {"embed": (c.vocab_size, c.width), "layers": stacked, "norm": normed(c.width)}
    return tree if c.tied else tree | {"head": linear(c.width, c.vocab_size, False)}


def _is_shape(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


def paths(tree) -> list[tuple[tuple[str | int, ...], tuple[int, ...]]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_shape)
    return [(tuple(name_of(key) for key in path), shape) for path, shape in flat]


def name_of(key) -> str | int:
    return key.key if isinstance(key, jax.tree_util.DictKey) else key.idx
