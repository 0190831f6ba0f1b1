"""Environments by name: those of this folder, those of gymnax, and bodies of brax."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.bodies import BODIES, body
from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum, Seen
from bilevel.files import needs


class Gymnax(eqx.Module):
    """An environment of gymnax with finitely many actions."""

    made: Any = eqx.field(static=True)
    params: Any
    actions: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)

    @property
    def scale(self):
        high = jnp.asarray(self.made.observation_space(self.params).high, float)
        return jnp.where((high > 0) & (high < 1e6), high, 1.0)

    def reset(self, key):
        return _canonical(self.made.reset_env(key, self.params)[1])

    def observe(self, state):
        return jnp.asarray(self.made.get_obs(state, self.params), float)

    def step(self, key, state, action):
        seen, after, reward, ended, _ = self.made.step_env(key, state, action, self.params)
        seen = Seen(jnp.asarray(seen, float), jnp.asarray(reward, float), ended)
        return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state), seen


def _canonical(state: PyTree) -> PyTree:
    """Arrays that are not weakly typed, so that a compiled rollout takes its own last state."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), state)


BUILT_IN = {
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
    "Pendulum-continuous": partial(Pendulum, actions=Box(1)),
}


def make(name: str) -> Environment:
    """An environment: of this folder, a body of brax, or else one of gymnax.

    Raises:
        ValueError: there is no such environment, or its observations or actions do not fit.
        ImportError: gymnax or brax is not installed.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name in BODIES:
        return body(name)
    gymnax = needs("gymnax", extra="rl", what=f"environments beside {', '.join(BUILT_IN)}")
    if name not in gymnax.registered_envs:
        known = ", ".join(sorted(gymnax.registered_envs))
        raise ValueError(f"{name!r} is no environment of gymnax; known are {known}.")
    made, params = gymnax.make(name)
    if (
        not hasattr(made.action_space(params), "n")
        or len(made.observation_space(params).shape) != 1
    ):
        raise ValueError(
            f"{name} has no finite set of actions, or observations that are no vector; neither is "
            "handled here."
        )
    return Gymnax(made, params, int(made.action_space(params).n), params.max_steps_in_episode)
