"""The learned value function, and the choice of x with it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevel.apps.robust.knapsack import (
    Knapsack,
    first_stages,
    scenarios,
    second_stage,
    worst_case,
)

EMBEDDED, HEAD = 32, 16  # widths of the embeddings of items, and of the value's head


class Value(NamedTuple):
    """`value(x, ξ)` of the second stage: a network over items and their sum."""

    params: PyTree[Array]
    scale: float

    def __call__(self, k: Knapsack, x, xi) -> Float[np.ndarray, " pairs"]:
        """Predictions for rows of x and ξ."""
        return np.asarray(_network(self.params, _features(k, x, xi))) * self.scale


class Chosen(NamedTuple):
    x: Float[np.ndarray, " items"]
    value: float  # in its worst scenario, solved exactly
    scenarios: int  # that were added
    solved: int  # second stages that were solved, for training included


def fit(k: Knapsack, *, samples: int = 1500, steps: int = 1500, seed: int = 0) -> Value:
    """Learn the second stage of one instance from random x and ξ, by Adam on squared errors."""
    rng = np.random.default_rng(seed)
    choices, worst = first_stages(k), scenarios(k)
    x, xi = (table[rng.integers(len(table), size=samples)] for table in (choices, worst))
    values = np.array([second_stage(k, a, b) for a, b in zip(x, xi, strict=True)])
    scale = float(values.std()) + 1e-9
    inputs = jnp.asarray(_features(k, x, xi))
    targets = jnp.asarray(values / scale)
    params = _init(jax.random.key(seed), inputs.shape[-1])
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(params):
        return ((_network(params, inputs) - targets) ** 2).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, memory = carry
            moved, memory = optimizer.update(jax.grad(loss)(params), memory)
            return (optax.apply_updates(params, moved), memory), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        return Value(train(params), scale)


def choose(k: Knapsack, value: Value, *, samples: int = 1500, verify: int = 12) -> Chosen:
    """Column-and-constraint generation with the network in place of the second stage.

    Args:
        samples: that the network was trained on, for the count.
        verify: how many of the best first stages are judged by their exact worst case.
    """
    choices, worst = first_stages(k), scenarios(k)
    now = choices @ k.now
    least = np.full(len(choices), np.inf)  # over the scenarios so far, as predicted
    first = scenario = int(np.argmax(worst @ k.fall))
    added: list[int] = []
    while scenario not in added:
        added.append(scenario)
        least = np.minimum(least, value(k, choices, np.tile(worst[scenario], (len(choices), 1))))
        first = int(np.argmax(now + least))
        x = np.tile(choices[first], (len(worst), 1))
        scenario = int(np.argmin(value(k, x, worst)))
    best = np.argsort(-(now + least))[:verify]
    exact = [worst_case(k, choices[i]) for i in best]
    j = int(np.argmax(exact))
    return Chosen(choices[best[j]], exact[j], len(added), samples + verify * len(worst))


def _features(k: Knapsack, x, xi) -> Float[np.ndarray, "pairs items features"]:
    """What the network sees of each item, and of the room that is left."""
    x, xi = np.atleast_2d(x), np.atleast_2d(xi)
    later = (k.profit - xi * k.fall) * (1 - x)
    room = np.broadcast_to((k.room - x @ k.weight)[:, None], x.shape) / k.room
    weight = np.broadcast_to(k.weight / k.room, x.shape)
    columns = (1 - x, later / k.profit.max(), later / k.weight / 5, weight, room)
    return np.stack(columns, axis=-1)


def _init(key, features: int) -> PyTree[Array]:
    sizes = {"item": (features, EMBEDDED), "mix": (EMBEDDED, EMBEDDED), "head": (EMBEDDED, HEAD)}
    sizes["out"] = (HEAD, 1)
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(one, size) / np.sqrt(size[0]), jnp.zeros(size[1]))
        for one, (name, size) in zip(keys, sizes.items(), strict=True)
    }


@jax.jit
def _network(params, items) -> Float[Array, " pairs"]:
    """Items are embedded, summed, and mapped to a value."""

    def layer(name, h):
        weight, bias = params[name]
        return h @ weight + jnp.expand_dims(bias, range(h.ndim - 1))

    h = jax.nn.relu(layer("mix", jax.nn.relu(layer("item", items)))).sum(axis=-2)
    return layer("out", jax.nn.relu(layer("head", h)))[..., 0]
