"""Rewards to learn: a bounded network, or one linear in the state and its squares."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.apps.rl.neural import actions, networks
from bilevel.apps.rl.neural.actions import Actions
from bilevel.typing import RandomKey


class Network(eqx.Module):
    """A network of the state, and of the action if it is told so, between −1 and 1.

    What has ended for good is seen as zeros and a flag: it has a reward like any state, so an
    early end is neither good nor bad by itself.

    Attributes:
        d: entries of an observation.
        actions: those of the environment, if the reward depends on them; 0 for the state alone.
        bounded: whether the output is passed through tanh.
    """

    d: int = eqx.field(static=True)
    actions: Actions = eqx.field(static=True, default=0)
    width: int = eqx.field(static=True, default=32)
    bounded: bool = eqx.field(static=True, default=True)

    def start(self, key: RandomKey) -> networks.Params:
        inputs = self.d + actions.inputs(self.actions) + 1
        return networks.init(key, (inputs, self.width, self.width, 1))

    def __call__(
        self, x, seen: Float[Array, "*n d"], action: Array, absorbed: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        alive, parts = 1 - absorbed[..., None], [seen]
        if self.actions:
            parts.append(actions.features(self.actions, action, seen))
        inputs = jnp.concatenate([*(part * alive for part in parts), 1 - alive], axis=-1)
        out = networks.apply(x, inputs)[..., 0]
        return jnp.tanh(out) if self.bounded else out


class Quadratic(eqx.Module):
    """`x · (s, s², absorbed)`: maximum-entropy IRL matches the means and squares of states."""

    d: int = eqx.field(static=True)

    def start(self, key: RandomKey) -> Array:
        return jnp.zeros(2 * self.d + 1)

    def __call__(self, x, seen, action, absorbed):
        alive = 1 - absorbed[..., None]
        return jnp.concatenate([seen * alive, seen**2 * alive, 1 - alive], axis=-1) @ x
