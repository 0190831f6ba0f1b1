"""The two losses, and networks for the features."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import layers, trees
from bilevel.apps.representation.tasks import Rows
from bilevel.problem import Problem
from bilevel.typing import RandomKey

Loss = Callable[[Float[Array, "n k"], Array], Float[Array, " n"]]


class Network(NamedTuple):
    """Features and what is needed to start them."""

    init: Callable[[RandomKey], PyTree]  # key -> x
    features: Callable[[PyTree, Array], Float[Array, "n d"]]  # (x, inputs) -> features
    width: int  # d
    outputs: int  # of a head: ways, or 1


def make_linear(p: int, width: int, outputs: int = 1) -> Network:
    """Features `inputs @ x`."""

    def init(key):
        return jax.random.normal(key, (p, width)) / jnp.sqrt(p)

    return Network(init, lambda x, inputs: inputs @ x, width, outputs)


def make_convnet(
    size: int, ways: int, channels: tuple[int, ...] = (16, 32), width: int = 64
) -> Network:
    """Convolutions of 3 x 3 and pooling for pictures (size, size), then `width` features.

    Features have length `√width` for every picture, so that the curvature of the loss of a head
    has a bound which does not depend on x.
    """
    sides = [size // 2**i for i in range(len(channels) + 1)]
    flat = sides[-1] ** 2 * channels[-1]

    def init(key):
        *keys, last = jax.random.split(key, len(channels) + 1)
        kernels = [
            jax.random.normal(k, (3, 3, a, b)) * jnp.sqrt(2 / (9 * a))
            for k, a, b in zip(keys, (1, *channels), channels, strict=False)
        ]
        return {"kernels": kernels, "dense": jax.random.normal(last, (flat, width)) / flat**0.5}

    def features(x, inputs):
        h = inputs[..., None]
        for kernel in x["kernels"]:
            h = layers.max_pool(jax.nn.relu(layers.conv(h, kernel)))
        h = h.reshape(len(h), -1) @ x["dense"]
        return h / jnp.sqrt(jnp.mean(h**2, 1, keepdims=True) + 1e-6)

    return Network(init, features, width, ways)


def cross_entropy(scores: Float[Array, "n ways"], labels: Array) -> Float[Array, " n"]:
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels)


def squared(scores: Float[Array, "n 1"], targets: Array) -> Float[Array, " n"]:
    """Half of the squared distance."""
    return (scores[:, 0] - targets) ** 2 / 2


def starts(network: Network, m: int, key: RandomKey, *, adapt: str = "head") -> tuple[PyTree, ...]:
    """x0 and y0 of `problem`: random features; heads, or changes of the network, zero."""
    x, head = network.init(key), jnp.zeros((network.width, network.outputs))
    x, y = (x, head) if adapt == "head" else ((both := {"features": x, "head": head}), both)
    return x, trees.map(lambda leaf: jnp.zeros((m, *leaf.shape), leaf.dtype), y)


def problem(
    network: Network,
    m: int,
    loss: Loss = cross_entropy,
    *,
    decay: ScalarLike = 1e-2,
    adapt: str = "head",
) -> Problem:
    """m lower problems that share x; each loss sees `Rows` of some or all tasks.

    Args:
        loss: `(scores, targets) -> (n,)`.
        decay: of `½ ‖y_b‖²` in the lower loss.
        adapt: what a task adapts. "head": a linear head y_b on the features x. "all": the network
            is `x + y_b`, features and head, so that x is a start, and the decay holds y_b near it.
    """
    if adapt not in ("head", "all"):
        raise ValueError(f"adapt is {adapt!r}; it is head or all.")
    of_task = Partial(task_loss, Partial(network.features), Partial(loss), adapt == "all")
    decay = jnp.asarray(decay, float)
    return Problem(Partial(_upper, of_task), Partial(_lower, of_task, decay), blocks=m)


def task_scores(features, whole: bool, x: PyTree, y: PyTree, inputs: Array) -> Float[Array, "n k"]:
    """Scores of one task."""
    if whole:
        both = trees.add(x, y)
        return features(both["features"], inputs) @ both["head"]
    return features(x, inputs) @ y


def task_loss(features, loss, whole, x, y, rows: Rows) -> Array:
    return loss(task_scores(features, whole, x, y, rows.inputs), rows.targets).mean()


def _upper(of_task, x, y, batch: Rows):
    return jax.vmap(of_task, (None, 0, 0))(x, y, batch).mean()


def _lower(of_task, decay, x, y, batch: Rows):
    fit = jax.vmap(of_task, (None, 0, 0))(x, y, batch).sum()
    return fit + decay.astype(fit.dtype) / 2 * trees.dot(y, y)
