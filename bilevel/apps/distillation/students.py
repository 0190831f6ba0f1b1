"""Networks whose features the images are learned for."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bilevel import layers
from bilevel.typing import RandomKey


class Student(NamedTuple):
    """A family of networks: `init(key)` draws weights, `features(weights, images)` are rows."""

    init: Callable[[RandomKey], PyTree]
    features: Callable[[PyTree, Array], Float[Array, "n d"]]


def convnet(channels: int = 1, widths: tuple[int, ...] = (32, 64)) -> Student:
    """3 by 3 convolutions, ReLU and pooling, one for each width, then all numbers in a row,
    over the root of how many they are.

    Images are (n, height, width, channels).
    """

    def init(key):
        keys = jax.random.split(key, len(widths))
        sizes = zip(keys, (channels, *widths[:-1]), widths, strict=True)
        return [jax.random.normal(k, (3, 3, i, o)) * (2 / (9 * i)) ** 0.5 for k, i, o in sizes]

    def features(weights, images):
        for kernel in weights:
            images = layers.max_pool(jax.nn.relu(layers.conv(images, kernel)))
        flat = images.reshape(len(images), -1)
        return flat / flat.shape[1] ** 0.5  # so that steps of 0.1 suit the head

    return Student(init, features)


def linear() -> Student:
    """The pixels themselves."""
    return Student(lambda key: jnp.zeros(1), lambda _, images: images.reshape(len(images), -1))


def head(
    features: Float[Array, "n d"], targets: Float[Array, "n k"], ridge: float = 1e-6
) -> Float[Array, "d1 k"]:
    """The ridge regression of targets on features and a constant, in closed form.

    `Fᵀ (F Fᵀ + λ I)⁻¹ Y` with `F = [features, 1]`, `λ = ridge · trace(F Fᵀ)`, the trace without
    gradient.
    """
    F = with_one(features)
    K = F @ F.T
    scale = jnp.asarray(ridge, F.dtype) * jax.lax.stop_gradient(jnp.trace(K))
    solved = jax.scipy.linalg.solve(K + scale * jnp.eye(len(K), dtype=F.dtype), targets)
    return F.T @ solved


def with_one(features: Float[Array, "n d"]) -> Float[Array, "n d1"]:
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=1)
