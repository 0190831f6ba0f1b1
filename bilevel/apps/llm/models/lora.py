"""Low-rank adapters (LoRA): a small pytree next to frozen parameters, `W + scale * A B`.

    adapters = lora.init(config, key, rank=8)
    loss = lambda adapters: task(lora.attach(params, adapters, scale=2.0))   # trains adapters alone
    params = lora.merge(params, adapters, scale=2.0)

An adapter tree has `{"a": (in, rank), "b": (rank, out)}` in place of every adapted kernel
`(in, out)`: `{"layers": [{"query": {"a": ..., "b": ...}, ...}, ...]}`, or stacked on a leading axis
for `Layers.SCAN`. A tree of fewer layers than the model's adapts the last ones.

Reference: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. "LoRA: Low-rank adaptation of large
language models". ICLR 2022, arXiv:2106.09685.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree, ScalarLike

from bilevel.apps.llm.models import parameters
from bilevel.apps.llm.models.attention import accurate
from bilevel.apps.llm.models.config import Config, Layers
from bilevel.apps.llm.models.parameters import Params

Adapters = dict[str, Any]


TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


def init(
    config: Config,
    key: Array,
    *,
    rank: int = 8,
    targets: Sequence[str] = ("query", "value"),
    layers: Layers = Layers.LIST,
    dtype: DTypeLike = jnp.float32,
) -> Adapters:
    """Initial adapters, which do not change the model: `a` is random, `b` is zero.

    Args:
        targets: the adapted kernels of each layer, from "query", "key", "value", "output", "gate",
            "up", "down".
        layers: layout, the same as that of the parameters.

    Raises:
        ValueError: the rank is below 1, or the model does not have a target.
    """
    if type(rank) is not int or rank < 1:
        raise ValueError(f"rank is {rank!r}; a whole number of at least 1 is needed.")
    kernels = kernel_shapes(config)
    unknown = [name for name in targets if name not in kernels]
    if unknown or not targets:
        raise ValueError(f"targets are {list(targets)}; some of {sorted(kernels)} are needed.")

    def adapter(shape, key):
        into, out = shape
        a = jax.random.uniform(key, (into, rank), jnp.float32, -1, 1) * jnp.float32(into**-0.5)
        return {"a": a.astype(dtype), "b": jnp.zeros((rank, out), dtype)}

    keys = jax.random.split(key, (config.layers, len(targets)))
    found = [
        {name: adapter(kernels[name], keys[i, j]) for j, name in enumerate(targets)}
        for i in range(config.layers)
    ]
    return in_layout({"layers": found}, layers)


def attach(
    params: parameters.Params, adapters: Adapters, *, scale: ScalarLike = 1.0
) -> parameters.Params:
    """Parameters that the decoder evaluates as `x W + scale (x A) B`, without merging.

    Differentiate through it to get derivatives of the adapters only.
    """

    def join(p, adapter):
        return p | {"a": adapter["a"], "b": adapter["b"] * _like(scale, adapter["b"])}

    return _joined(params, adapters, join)


def merge(params: Params, adapters: Adapters, *, scale: ScalarLike = 1.0) -> Params:
    """Parameters with W replaced by `W + scale * A B`, in the dtype of W."""

    def join(p, adapter):
        a, b = (adapter[name].astype(accurate(p["kernel"])) for name in ("a", "b"))
        more = _like(scale, a) * (a @ b)
        return p | {"kernel": (p["kernel"].astype(more.dtype) + more).astype(p["kernel"].dtype)}

    return _joined(params, adapters, join)


def _joined(params, adapters, join):
    def layer(p, adapters):
        return p | {name: join(p[name], adapter) for name, adapter in adapters.items()}

    layers = params["layers"]
    if isinstance(layers, list):
        adapted = in_layout(adapters, Layers.LIST)["layers"]
        rest = below(len(layers), len(adapted))
        top = [layer(*pair) for pair in zip(layers[rest:], adapted, strict=True)]
        return params | {"layers": layers[:rest] + top}
    adapted = in_layout(adapters, Layers.SCAN)["layers"]
    rest = below(_count(layers), _count(adapted))
    if rest:  # stacked layers have one tree: those that rest get an adapter of zeros
        adapted = jax.tree.map(lambda a: jnp.pad(a, ((rest, 0), (0, 0), (0, 0))), adapted)
    return params | {"layers": layer(layers, adapted)}


def _count(stacked: PyTree) -> int:
    return len(jax.tree.leaves(stacked)[0])


def below(layers: int, adapted: int) -> int:
    """How many layers rest, below the last ones that are adapted.

    Raises:
        ValueError: there are fewer layers than that.
    """
    if not 1 <= adapted <= layers:
        raise ValueError(
            f"{adapted} layers are to be adapted; the model has {layers}, of which at least 1."
        )
    return layers - adapted


def kernel_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's kernels."""
    layer = parameters.shapes_of(config)["layers"][0]
    return {name: layer[name]["kernel"] for name in TARGETS if name in layer}


def in_layout(tree: PyTree, layers: Layers) -> Any:
    return parameters.stack(tree) if layers is Layers.SCAN else parameters.unstack(tree)


def _like(scale: ScalarLike, leaf: Array) -> Array:
    return jnp.asarray(scale, leaf.dtype)
