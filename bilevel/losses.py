"""Losses of linear models, a value for each row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

RowLoss = Callable[[Float[Array, "n outputs"], Array], Float[Array, " n"]]


class Rows(NamedTuple):
    """Samples, one a row; arrays of NumPy or JAX."""

    features: Float[Any, "n d"]
    target: Shaped[Any, " n"]  # numbers, or classes numbered from 0


def scores(y: PyTree, features: Float[Array, "n d"]) -> Float[Array, "n outputs"]:
    """Of a linear model `{"weights": (d, outputs), "bias": (outputs,)}`."""
    return features @ y["weights"] + y["bias"][None]


def zero_model(d: int, outputs: int) -> dict[str, Array]:
    """A linear model that has learned nothing."""
    return {"weights": jnp.zeros((d, outputs)), "bias": jnp.zeros(outputs)}


def losses_of(loss: RowLoss, y: PyTree, rows: Rows) -> Float[Array, " n"]:
    """The loss of each row under a linear model."""
    return loss(scores(y, jnp.asarray(rows.features)), jnp.asarray(rows.target))


def squared(scores: Float[Array, "n 1"], target: Float[Array, " n"]) -> Float[Array, " n"]:
    """Half the squared error."""
    return (scores[:, 0] - target) ** 2 / 2


def logistic(scores: Float[Array, "n 1"], target: Array) -> Float[Array, " n"]:
    """Cross-entropy of two classes, 0 and 1."""
    return optax.sigmoid_binary_cross_entropy(scores[:, 0], target.astype(scores.dtype))


def softmax(scores: Float[Array, "n classes"], target: Int[Array, " n"]) -> Float[Array, " n"]:
    """Cross-entropy of classes, numbered from 0."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, target)
