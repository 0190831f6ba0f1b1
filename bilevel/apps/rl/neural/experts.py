"""Experts for demonstrations: linear-quadratic control of CartPole, value iteration on Pendulum.

Where actions are numbers otherwise, a linear policy is searched for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.linalg import solve_discrete_are

from bilevel.apps.rl.neural import actions
from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum
from bilevel.apps.rl.neural.rollouts import Act, episodes, returns
from bilevel.apps.rl.neural.search import search
from bilevel.typing import RandomKey


class Demos(NamedTuple):
    """Episodes, one a row; what stands after the end of one means nothing."""

    observations: Float[Array, "n t+1 d"]
    actions: Array  # whole numbers (n, t), or numbers (n, t, m)
    lengths: Int[Array, " n"]  # actions of each
    ended: Bool[Array, " n"]  # whether it ended for good, not by the horizon


def balance(env: CartPole) -> Act:
    """Push to the side to which the linear-quadratic regulator at the upright state pushes."""
    rest = jnp.zeros(4)
    a = np.asarray(jax.jacobian(lambda s: env.push(s, 0.0))(rest))
    b = np.asarray(jax.jacobian(lambda u: env.push(rest, u))(0.0))[:, None]
    p = solve_discrete_are(a, b, np.diag([1.0, 1.0, 10.0, 1.0]), np.array([[0.01]]))
    gain = jnp.asarray(np.linalg.solve(0.01 + b.T @ p @ b, b.T @ p @ a)[0])
    return lambda key, seen: jnp.where(gain @ seen < 0, 1, 0)


def swing_up(
    env: Pendulum, *, angles: int = 128, speeds: int = 129, discount: float = 0.99, steps: int = 600
) -> Act:
    """The best torque by value iteration on a grid of angles and speeds, values interpolated."""
    angle = jnp.linspace(-jnp.pi, jnp.pi, angles, endpoint=False)
    speed = jnp.linspace(-8.0, 8.0, speeds)
    grid = jnp.stack([jnp.repeat(angle, speeds), jnp.tile(speed, angles)], axis=1)
    torques = actions.grid(env.actions)

    def of_each(fn, states):
        return jax.vmap(lambda s: jax.vmap(lambda a: fn(s, a))(torques))(states)

    def worth(values, states):
        """`values` at any states, bilinear between those of the grid."""
        row = (states[..., 0] + jnp.pi) * (angles / (2 * jnp.pi)) % angles
        column = (states[..., 1] + 8) * ((speeds - 1) / 16)
        low, left = jnp.floor(row), jnp.clip(jnp.floor(column), 0, speeds - 2)
        u, v, i, j = row - low, column - left, low.astype(int), left.astype(int)
        around = jnp.concatenate([values, values[:1]])
        near = (1 - v) * around[i, j] + v * around[i, j + 1]
        far = (1 - v) * around[i + 1, j] + v * around[i + 1, j + 1]
        return (1 - u) * near + u * far

    gain, after = of_each(env.reward, grid), of_each(env.turn, grid)

    def backup(_, values):
        best = jnp.max(gain + discount * worth(values, after), axis=1)
        return best.reshape(angles, speeds)

    values = jax.jit(jax.lax.fori_loop, static_argnums=2)(
        0, steps, backup, jnp.zeros((angles, speeds))
    )

    def act(key, seen):
        here = env.place(seen)[None]
        later = worth(values, of_each(env.turn, here))
        return torques[jnp.argmax((of_each(env.reward, here) + discount * later)[0])]

    return act


def expert(env: Environment) -> Act:
    """The policy that demonstrations come from. A search takes minutes.

    Raises:
        ValueError: no expert is known for the environment.
    """
    if isinstance(env, CartPole):
        return balance(env)
    if isinstance(env, Pendulum):
        return swing_up(env)
    if isinstance(env.actions, Box):
        return search(env, jax.random.key(0))
    raise ValueError("experts are known for CartPole-v1, Pendulum-v1 and bodies only.")


def record(env: Environment, act: Act, key: RandomKey, n: int) -> tuple[Demos, Float[Array, " n"]]:
    """n episodes of a policy as demonstrations, and their true returns."""
    steps, alive = episodes(env, act, key, n)
    last = jnp.sum(alive, axis=0)
    seen = jnp.concatenate([steps.before, steps.after[-1:]])
    ends = jnp.take_along_axis(steps.after, (last - 1)[None, :, None], axis=0)
    at_end = jnp.arange(len(seen))[:, None, None] == last[None, :, None]
    seen = jnp.where(at_end, ends, seen)
    ended = jnp.any(steps.ended & alive, axis=0)
    demos = Demos(jnp.swapaxes(seen, 0, 1), jnp.swapaxes(steps.action, 0, 1), last, ended)
    return demos, returns(steps, alive)
