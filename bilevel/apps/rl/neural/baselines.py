"""What inverse RL is compared with, on networks of the same size."""

import jax
import jax.numpy as jnp
import optax

from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.experts import Demos
from bilevel.apps.rl.neural.irl import Policy, draw, log_likelihood, rows
from bilevel.typing import RandomKey
from bilevel.updates import FromOptax


def clone(
    policy: Policy, demos: Demos, key: RandomKey, *, steps: int | None = None, batch: int = 256
):
    """Behaviour cloning: weights of a policy that makes the demonstrations likely, by Adam.

    Args:
        steps: 1000, or 5000 where actions are numbers, when absent.
    """
    if steps is None:
        steps = 5000 if isinstance(policy.env.actions, Box) else 1000
    first, rest = jax.random.split(key)
    expert = rows(demos, policy.env.horizon, policy.env.scale)
    up_to = jnp.cumsum(expert.weight * (1 - expert.absorbed))
    adam = FromOptax(optax.adam, 1e-3)
    y = policy.start(first)

    def move(carry, key):
        y, memory = carry
        part = draw(expert, up_to, key, batch)
        slope = jax.grad(lambda y: -log_likelihood(policy, y, part))(y)
        return adam.step(slope, memory, y, 0), None

    return jax.lax.scan(move, (y, adam.init(y)), jax.random.split(rest, steps))[0][0]
