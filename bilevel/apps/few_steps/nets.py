"""A small network, and how it is fitted."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from bilevel.lower import Gradient
from bilevel.problem import Problem
from bilevel.updates import FromOptax


def start(sizes: Sequence[int], *, key: Array) -> PyTree:
    """Random weights of a network with these widths: `[{"weights": ..., "bias": ...}, ...]`."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"weights": jax.random.normal(k, (i, o)) * (2 / i) ** 0.5, "bias": jnp.zeros(o)}
        for k, i, o in zip(keys, sizes, sizes[1:], strict=False)
    ]


def scores(net: PyTree, inputs: Float[Array, "n d"]) -> Float[Array, "n classes"]:
    """What the network says of each class."""
    *layers, last = net
    hidden = inputs
    for layer in layers:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"][None])
    return hidden @ last["weights"] + last["bias"][None]


def fit(
    net: PyTree,
    inputs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    steps: int = 500,
    step_size: float = 1e-3,
) -> PyTree:
    """Adam on all samples; the cross-entropy over all classes."""

    def loss(x, net, batch):
        found = scores(net, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    fitting = Problem(loss, loss)
    solver = Gradient(FromOptax(optax.adam, step_size), steps)
    return jax.jit(lambda net, batch: solver.solve(fitting, None, net, batch).y)(
        net, (inputs, labels)
    )


def accuracy(net: PyTree, inputs: Float[Array, "n d"], labels: Int[Array, " n"]) -> float:
    """Share of samples whose largest score is that of their label."""
    return float((scores(net, inputs).argmax(1) == labels).mean())
