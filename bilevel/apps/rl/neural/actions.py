"""What an agent may do: one of a finite number of actions, or numbers between −1 and 1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.typing import RandomKey


class Box(NamedTuple):
    """Actions of `size` numbers, each from −1 to 1."""

    size: int


Actions = int | Box  # how many there are, or a box


def uniform(actions: Actions, key: RandomKey) -> Array:
    """Any action."""
    if isinstance(actions, Box):
        return jax.random.uniform(key, (actions.size,), minval=-1.0)
    return jax.random.randint(key, (), 0, actions)


def grid(actions: Actions, each: int = 21) -> Array:
    """All of them, or those of a box at equal distances, `each` along a side."""
    if isinstance(actions, Box):
        sides = jnp.meshgrid(*[jnp.linspace(-1.0, 1.0, each)] * actions.size, indexing="ij")
        return jnp.stack(sides, axis=-1).reshape(-1, actions.size)
    return jnp.arange(actions)


def nothing(actions: Actions) -> Array:
    """What stands for the action where there is none."""
    return jnp.zeros(actions.size) if isinstance(actions, Box) else jnp.zeros((), jnp.int32)


def inputs(actions: Actions) -> int:
    """The numbers by which a network sees an action."""
    return actions.size if isinstance(actions, Box) else actions


def features(actions: Actions, action: Array, like: Array) -> Float[Array, "*n inputs"]:
    """What a network sees of actions: the numbers themselves, or a unit vector."""
    if isinstance(actions, Box):
        return action.astype(like.dtype)
    return jax.nn.one_hot(action, actions, dtype=like.dtype)


def entropy(actions: Actions) -> Array:
    """That of actions drawn uniformly, the largest there is."""
    if isinstance(actions, Box):
        return actions.size * jnp.log(2.0)
    return jnp.log(float(actions))
