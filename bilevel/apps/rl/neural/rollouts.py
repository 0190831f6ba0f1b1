"""Many copies of an environment stepped together, in one compiled scan."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel.apps.rl.neural.environments import Environment
from bilevel.typing import RandomKey

Act = Callable[[RandomKey, Array], Array]  # one key and one observation to an action


class Places(NamedTuple):
    """The states of n copies of an environment."""

    state: PyTree
    time: Int[Array, " n"]  # steps since the last reset


class Steps(NamedTuple):
    """Transitions of n copies of an environment over t steps; the first axis is time."""

    before: Float[Array, "t n d"]
    action: Array  # (t, n), or (t, n, m)
    after: Float[Array, "t n d"]
    reward: Float[Array, "t n"]  # the true one
    ended: Bool[Array, "t n"]
    reset: Bool[Array, "t n"]  # the next row begins anew, after an end or at the horizon


def start(env: Environment, key: RandomKey, n: int) -> Places:
    return Places(jax.vmap(env.reset)(jax.random.split(key, n)), jnp.zeros(n, jnp.int32))


def rollout(
    env: Environment, act: Act, key: RandomKey, places: Places, length: int
) -> tuple[Places, Steps]:
    """`length` steps of every copy, from where it is; a new episode begins where one ends."""

    def one(key, state, time):
        keys = jax.random.split(key, 3)
        before = env.observe(state)
        action = act(keys[0], before)
        after, seen = env.step(keys[1], state, action)
        reset = seen.ended | (time + 1 >= env.horizon)
        state = jax.tree.map(lambda new, old: jnp.where(reset, new, old), env.reset(keys[2]), after)
        step = Steps(before, action, seen.observation, seen.reward, seen.ended, reset)
        return Places(state, jnp.where(reset, 0, time + 1)), step

    def all_of_them(places, key):
        return jax.vmap(one)(jax.random.split(key, len(places.time)), *places)

    return jax.lax.scan(all_of_them, places, jax.random.split(key, length))


def episodes(env: Environment, act: Act, key: RandomKey, n: int) -> tuple[Steps, Array]:
    """n whole episodes, and which of their steps are before the end: `alive (t, n)`."""
    first, rest = jax.random.split(key)
    _, steps = rollout(env, act, rest, start(env, first, n), env.horizon)
    ends = steps.ended.astype(jnp.int32)
    return steps, jnp.cumsum(ends, axis=0) == ends


def returns(steps: Steps, alive: Array) -> Float[Array, " n"]:
    """The true reward of each episode."""
    return jnp.sum(jnp.where(alive, steps.reward, 0.0), axis=0)
