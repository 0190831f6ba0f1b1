"""Environments with many states: what they are, and CartPole and Pendulum in a few lines.

An environment is a pytree, so numbers of its dynamics can be changed or swept without compiling.
"""

from typing import NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from bilevel.apps.rl.mdp import MDP, as_float, draw
from bilevel.apps.rl.neural.actions import Actions, Box
from bilevel.typing import RandomKey


class Seen(NamedTuple):
    """What a step shows."""

    observation: Float[Array, " d"]
    reward: Scalar  # the true one, which inverse RL does not use
    ended: Bool[Array, ""]  # for good, as by a fall; not by the horizon


class Environment(Protocol):
    """States, actions, and observations that networks see divided by `scale`."""

    @property
    def actions(self) -> Actions: ...

    @property
    def horizon(self) -> int: ...

    @property
    def scale(self) -> Float[Array, " d"]: ...

    def reset(self, key: RandomKey) -> PyTree:
        """A first state."""
        ...

    def observe(self, state: PyTree) -> Float[Array, " d"]: ...

    def step(self, key: RandomKey, state: PyTree, action: Array) -> tuple[PyTree, Seen]:
        """The next state, and what is seen of it."""
        ...


class CartPole(eqx.Module):
    """A pole on a cart that is pushed left (0) or right (1): CartPole-v1 of Gym.

    The state is what is observed: position (m), speed (m/s), angle (rad), angular speed (rad/s).
    The reward is 1 until the pole falls.

    Attributes:
        length: half the length of the pole, in m.
        gravity: in m/s².
    """

    length: Scalar = eqx.field(converter=as_float, default=0.5)
    gravity: Scalar = eqx.field(converter=as_float, default=9.8)
    actions: int = eqx.field(static=True, default=2)
    horizon: int = eqx.field(static=True, default=500)

    @property
    def scale(self):
        return jnp.array([2.4, 3.0, 0.21, 3.0])

    def reset(self, key):
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def observe(self, state):
        return state

    def place(self, observation):
        """The state that is observed so."""
        return observation

    def push(self, state, force):
        """The state 0.02 s after a force, in N."""
        _, speed, angle, turn = state
        cart, pole = 1.0, 0.1
        sin, cos, mass = jnp.sin(angle), jnp.cos(angle), cart + pole
        pull = (force + pole * self.length * turn**2 * sin) / mass
        swing = (self.gravity * sin - cos * pull) / (self.length * (4 / 3 - pole * cos**2 / mass))
        gain = pull - pole * self.length * swing * cos / mass
        return state + 0.02 * jnp.stack([speed, gain, turn, swing])

    def step(self, key, state, action):
        after = self.push(state, jnp.where(action == 1, 10.0, -10.0))
        fell = (jnp.abs(after[0]) > 2.4) | (jnp.abs(after[2]) > 12 * jnp.pi / 180)
        return after, Seen(after, jnp.ones((), after.dtype), fell)


class Pendulum(eqx.Module):
    """A pendulum to swing up and hold, by torques of −2, −1, 0, 1, 2: Pendulum-v1 of Gym.

    With `actions=Box(1)` by any torque from −2 to 2, as Gym has it.

    The state is the angle from upright (rad) and its speed (rad/s); the observation has cosine and
    sine of the angle. The reward is `−(angle² + speed²/10 + torque²/1000)`.
    """

    length: Scalar = eqx.field(converter=as_float, default=1.0)
    gravity: Scalar = eqx.field(converter=as_float, default=10.0)
    actions: Actions = eqx.field(static=True, default=5)
    horizon: int = eqx.field(static=True, default=200)

    @property
    def scale(self):
        return jnp.array([1.0, 1.0, 8.0])

    def reset(self, key):
        return jax.random.uniform(key, (2,), minval=-1.0) * jnp.array([jnp.pi, 1.0])

    def observe(self, state):
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

    def place(self, observation):
        """The state that is observed so."""
        return jnp.stack([jnp.arctan2(observation[1], observation[0]), observation[2]])

    def torque(self, action):
        if isinstance(self.actions, Box):
            return 2 * action[..., 0]
        return jnp.linspace(-2.0, 2.0, self.actions)[action]

    def reward(self, state, action):
        angle = (state[0] + jnp.pi) % (2 * jnp.pi) - jnp.pi
        return -(angle**2 + 0.1 * state[1] ** 2 + 0.001 * self.torque(action) ** 2)

    def turn(self, state, action):
        """The state 0.05 s later."""
        gain = 1.5 * self.gravity / self.length * jnp.sin(state[0])
        speed = state[1] + 0.05 * (gain + 3 * self.torque(action) / self.length**2)
        speed = jnp.clip(speed, -8.0, 8.0)
        return jnp.stack([state[0] + 0.05 * speed, speed])

    def step(self, key, state, action):
        after = self.turn(state, action)
        return after, Seen(self.observe(after), self.reward(state, action), jnp.zeros((), bool))


class Finite(eqx.Module):
    """A finite MDP, such as a gridworld, as an environment: a state is seen as a unit vector."""

    mdp: MDP
    reward: Float[Array, "states actions"]
    horizon: int = eqx.field(static=True, default=100)

    @property
    def actions(self):
        return self.mdp.shape[1]

    @property
    def scale(self):
        return jnp.ones(self.mdp.shape[0], self.reward.dtype)

    def reset(self, key):
        return draw(jnp.cumsum(self.mdp.start)[None], jax.random.uniform(key, (1,)))[0]

    def observe(self, state):
        return jax.nn.one_hot(state, self.mdp.shape[0], dtype=self.reward.dtype)

    def step(self, key, state, action):
        moves = jnp.cumsum(self.mdp.kernel[state, action])[None]
        after = draw(moves, jax.random.uniform(key, (1,)))[0]
        return after, Seen(self.observe(after), self.reward[state, action], jnp.zeros((), bool))
