"""Bodies that walk: environments of brax, by its spring physics."""

from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.environments import Seen
from bilevel.files import needs

# What networks divide observations by: about the spread of what is seen of a body that hops.
BODIES = {"hopper": (1.0, 0.3, 1.0, 1.0, 1.0, 2.0, 3.0, 2.0, 3.0, 3.0, 5.0)}
STARTS = 256  # states that episodes begin from, made once: a reset costs as much as a step


class Body(eqx.Module):
    """An environment of brax. Numbers of its dynamics are those of the system in `made`.

    Attributes:
        starts: states that episodes begin from.
        scale: what networks divide observations by.
    """

    made: Any = eqx.field(static=True)
    starts: PyTree
    scale: Float[Array, " d"]
    actions: Box = eqx.field(static=True)
    horizon: int = eqx.field(static=True, default=1000)

    def reset(self, key):
        i = jax.random.randint(key, (), 0, STARTS)
        return jax.tree.map(lambda a: a[i], self.starts)

    def observe(self, state):
        return state.obs

    def step(self, key, state, action):
        own = jax.tree.map(lambda a: a, state)  # brax writes into its dictionaries
        with _mixed():
            after = self.made.step(own, action.astype(state.obs.dtype))
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        return after, Seen(after.obs, after.reward, after.done > 0)


def body(name: str, horizon: int = 1000, **changed: float) -> Body:
    """An environment of brax by name.

    Args:
        changed: factors of numbers of its system, such as `gravity=1.5`.

    Raises:
        ImportError: brax is not installed.
    """
    made = needs("brax.envs", extra="rl", what="bodies").get_environment(name, backend="spring")
    if changed:
        news = {k: getattr(made.sys, k) * v for k, v in changed.items()}
        made.sys = made.sys.replace(**news)

    @jax.jit
    def first(key):
        with _mixed():
            return jax.vmap(made.reset)(jax.random.split(key, STARTS))

    starts = jax.tree.map(lambda a: jnp.asarray(a, a.dtype), first(jax.random.key(0)))
    scale = jnp.asarray(BODIES[name], starts.obs.dtype)
    return Body(made, starts, scale, Box(made.action_size), horizon)


@contextmanager
def _mixed():
    """brax mixes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
