"""Small networks as plain trees of arrays."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.typing import RandomKey

Params = list[dict[str, Array]]


def init(key: RandomKey, sizes: Sequence[int]) -> Params:
    """Weights of variance 1 / inputs; those of the last layer a hundredth of that."""
    layers = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        size = (0.1 if i == len(sizes) - 2 else 1.0) / n**0.5
        weights = size * jax.random.normal(jax.random.fold_in(key, i), (n, m))
        layers.append({"w": weights, "b": jnp.zeros(m, weights.dtype)})
    return layers


def apply(params: Params, inputs: Float[Array, "*n d"]) -> Float[Array, "*n m"]:
    """Layers with tanh between them."""
    *hidden, last = params
    for layer in hidden:
        inputs = jnp.tanh(_affine(layer, inputs))
    return _affine(last, inputs)


def _affine(layer: dict[str, Array], inputs: Array) -> Array:
    out = inputs @ layer["w"]
    return out + over(layer["b"], out)


def over(vector: Float[Array, " d"], like: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """The same vector at every place."""
    return jnp.broadcast_to(vector, like.shape)
