"""Noise of training whose strength is tuned: dropout, input noise, contrast, shifts."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.typing import RandomKey


class Strength(NamedTuple):
    """A hyperparameter: its value is `link(x + at)`, so that x = 0 is where it starts."""

    link: Callable[[Array], Array]
    at: float

    def __call__(self, x: Scalar) -> Scalar:
        return self.link(x + jnp.asarray(self.at, x.dtype))


def share(start: float = 0.05) -> Strength:
    """Between 0 and 1."""
    return Strength(jax.nn.sigmoid, math.log(start / (1 - start)))


def scale(start: float = 0.05) -> Strength:
    """Positive."""
    return Strength(jnp.exp, math.log(start))


class Augmentation(NamedTuple):
    """What happens to the inputs of training: `apply(value, inputs, key)`, never differentiated."""

    strength: Strength
    apply: Callable[[Scalar, Array, RandomKey], Array]


def noise(start: float = 0.05) -> Augmentation:
    """Normal noise of this deviation on each input."""

    def apply(value, inputs, key):
        return inputs + value * jax.random.normal(key, inputs.shape, inputs.dtype)

    return Augmentation(scale(start), apply)


def contrast(start: float = 0.05) -> Augmentation:
    """Each sample times `exp(value · normal)`."""

    def apply(value, inputs, key):
        draw = jax.random.normal(key, (len(inputs), *[1] * (inputs.ndim - 1)), inputs.dtype)
        return inputs * jnp.exp(value * draw)

    return Augmentation(scale(start), apply)


def shift(height: int, width: int, start: float = 0.05) -> Augmentation:
    """Flat images moved by up to this share of a pixel, up or down and to a side, with wrapping."""

    def apply(value, inputs, key):
        images = inputs.reshape(-1, height, width)
        for axis, k in zip((1, 2), jax.random.split(key), strict=True):
            by = value * jax.random.uniform(k, (len(images), 1, 1), inputs.dtype, -1, 1)
            moved = jnp.where(by > 0, jnp.roll(images, 1, axis), jnp.roll(images, -1, axis))
            images = (1 - jnp.abs(by)) * images + jnp.abs(by) * moved
        return images.reshape(inputs.shape)

    return Augmentation(share(start), apply)


def dropped(rate: Scalar, h: Float[Array, "n d"], key: RandomKey) -> Float[Array, "n d"]:
    """Each entry kept with probability 1 − rate, and divided by it."""
    stays = jax.random.uniform(key, h.shape, h.dtype) >= rate
    return jnp.where(stays, h / (1 - rate), jnp.zeros_like(h))


def values(x: Mapping[str, Scalar], strengths: Mapping[str, Strength]) -> dict[str, Scalar]:
    """The hyperparameters themselves."""
    return {name: strength(x[name]) for name, strength in strengths.items()}


def layer(y: PyTree, h: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """`h Wᵀ + b` of `{"weight": (k, d), "bias": (k,)}`."""
    return h @ y["weight"].T + y["bias"][None]
