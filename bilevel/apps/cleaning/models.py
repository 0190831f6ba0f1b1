"""Classifiers that can be cleaned with: linear, MLP, convolutional, and the user's own."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bilevel import layers
from bilevel.apps.cleaning.digits import Task
from bilevel.apps.cleaning.losses import Scores, linear
from bilevel.typing import RandomKey


class Model(NamedTuple):
    """Scores as a function of parameters and inputs, and the parameters to start from."""

    scores: Scores
    params: PyTree


Maker = Callable[[RandomKey, Array, int], Model]  # key, some inputs, number of classes


def make_linear(key: RandomKey, inputs: Array, classes: int) -> Model:
    """Scores linear in the inputs, all zero at the start."""
    d = math.prod(inputs.shape[1:])
    params = {"weights": jnp.zeros((d, classes)), "bias": jnp.zeros(classes)}
    return Model(_flat_linear if inputs.ndim > 2 else linear, params)


def make_mlp(key: RandomKey, inputs: Array, classes: int, width: int = 64) -> Model:
    """One hidden layer of ReLU."""
    first, last = jax.random.split(key)
    d = math.prod(inputs.shape[1:])
    params = {
        "first": _normal(first, (d, width), d),
        "bias": jnp.zeros(width),
        "last": _normal(last, (width, classes), width),
    }
    return Model(_mlp, params)


def make_convnet(
    key: RandomKey, inputs: Array, classes: int, channels: tuple[int, int] = (8, 16)
) -> Model:
    """Two 3x3 convolutions with ReLU and pooling, then a linear layer.

    Raises:
        ValueError: the inputs are not (rows, height, width, channels) with at least 4 by 4 pixels.
    """
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < 4:
        raise ValueError(
            f"a convnet needs pictures, (rows, height, width, channels) of at least 4 by 4 pixels; "
            f"the inputs have shape {inputs.shape}."
        )
    keys, (height, width, deep) = jax.random.split(key, 3), inputs.shape[1:]
    a, b = channels
    features = (height // 4) * (width // 4) * b
    params = {
        "first": _normal(keys[0], (3, 3, deep, a), 9 * deep),
        "second": _normal(keys[1], (3, 3, a, b), 9 * a),
        "last": _normal(keys[2], (features, classes), features),
        "bias": jnp.zeros(classes),
    }
    return Model(_convnet, params)


MAKERS: dict[str, Maker] = {"linear": make_linear, "mlp": make_mlp, "convnet": make_convnet}


def check(model: Model, task: Task, classes: int) -> None:
    """Refuse a model whose scores do not fit the task.

    Raises:
        ValueError: in one sentence: it fails, or returns another shape or dtype.
    """
    some = task.train.inputs[:3]
    needed = f"float[{len(some)}, {classes}] is needed, a score for each class"
    try:
        found = jax.eval_shape(model.scores, model.params, some)
    except Exception as error:  # whatever the user's code raises
        told = str(error).strip().split("\n")[0]
        raise ValueError(f"the model failed on {len(some)} samples: {told}; {needed}.") from error
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != (len(some), classes) or not jnp.issubdtype(found.dtype, jnp.floating):
        told = f"{dtype}{list(shape)}" if shape is not None else type(found).__name__
        raise ValueError(f"the model returns {told}; {needed}.")


def _normal(key: RandomKey, shape: tuple[int, ...], fan_in: int) -> Array:
    return jax.random.normal(key, shape) * math.sqrt(2 / fan_in)


def _flat(inputs: Array) -> Array:
    return inputs.reshape(len(inputs), -1)


def _flat_linear(params, inputs):
    return linear(params, _flat(inputs))


def _mlp(params, inputs):
    hidden = jax.nn.relu(_flat(inputs) @ params["first"] + params["bias"][None])
    return hidden @ params["last"]


def _convnet(params, inputs):
    hidden = layers.max_pool(jax.nn.relu(layers.conv(inputs, params["first"])))
    hidden = layers.max_pool(jax.nn.relu(layers.conv(hidden, params["second"])))
    return _flat(hidden) @ params["last"] + params["bias"][None]
