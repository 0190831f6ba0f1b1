"""The network that sets the powers, and the two losses."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bilevel.apps.wireless.channels import Gains, rate, wmmse
from bilevel.problem import Problem
from bilevel.sets import Simplex


class Samples(NamedTuple):
    """Channels, and the rate that WMMSE reaches on each."""

    gains: Float[Array, "n users users"]
    best: Float[Array, " n"]


def samples(gains: Gains) -> Samples:
    """Channels with the rate of WMMSE."""
    return Samples(gains, rate(gains, wmmse(gains)))


def start(users: int, widths: Sequence[int] = (64, 32), *, key: Array) -> PyTree:
    """A network with random weights: `[{"weights": (in, out), "bias": (out,)}, ...]`."""
    sizes = [users**2, *widths, users]
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"weights": jax.random.normal(k, (i, o)) * (2 / i) ** 0.5, "bias": jnp.zeros(o)}
        for k, i, o in zip(keys, sizes, sizes[1:], strict=False)
    ]


def powers(x: PyTree, gains: Float[Array, "n users users"]) -> Float[Array, "n users"]:
    """What the network sends, from 0 to 1."""
    hidden = jnp.log(gains.reshape(len(gains), -1) + 1e-2)  # near or far: of one size
    *layers, last = x
    for layer in layers:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"][None])
    return jax.nn.sigmoid(hidden @ last["weights"] + last["bias"][None])


def shortfall(x: PyTree, data: Samples) -> Float[Array, " n"]:
    """`1 − rate / rate of WMMSE`, a number a sample; negative where the network is better."""
    return 1 - rate(data.gains, powers(x, data.gains)) / data.best


def problem() -> Problem:
    """The two losses. Batches are `(numbers, Samples)`: the number of a sample finds its weight.

    y are the weights of all n samples, on the simplex; a batch stands for all of them.
    """

    def weighted(x, y, batch: tuple[Int[Array, " b"], Samples]):
        numbers, data = batch
        return (y[numbers] * shortfall(x, data)).mean() * len(y)

    def lower(x, y, batch):
        return -weighted(x, y, batch)

    return Problem(weighted, lower, lower_set=Simplex())
