"""How close a learned reward of the pendulum is to the true one, up to a scale and shaping."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bilevel.apps.rl.neural.actions import grid
from bilevel.apps.rl.neural.environments import Pendulum
from bilevel.apps.rl.neural.irl import Policy

ANGLES, SPEEDS = 20, 21


def share(policy: Policy, x) -> float:
    """The share of the true reward that is explained, of what shaping alone does not explain.

    On a grid of angles and speeds the true reward is fitted by `c r_x + γ E[φ(s')] − φ(s)` and by
    the shaping alone: 1 − the ratio of the two sums of squares. A reward with the same optimal
    policies as the true one reaches 1; one that says nothing about what to do, or the opposite, 0.
    """
    env = policy.env
    assert isinstance(env, Pendulum)
    states, actions = nodes(), grid(env.actions)

    def of(state, action):
        seen = policy.scaled(env.observe(state))
        learned = policy.reward(x, seen, action, jnp.zeros((), seen.dtype))
        return learned, env.reward(state, action), env.turn(state, action)

    learned, true, after = jax.vmap(lambda s: jax.vmap(lambda a: of(s, a))(actions))(states)
    shaping = float(policy.discount) * between(np.asarray(after)) - np.eye(len(states))[:, None]
    shaping = shaping.reshape(-1, len(states))
    found, wanted = (np.asarray(a, np.float64).ravel() for a in (learned, true))
    scale, both = _fit(np.column_stack([found, shaping]), wanted)
    _, alone = _fit(shaping, wanted)
    return 1 - both / alone if scale > 0 else 0.0


def _fit(basis: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """The first coefficient of least squares, and the sum of squares that is left."""
    best = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    return float(best[0]), float(np.sum((wanted - basis @ best) ** 2))


def nodes() -> Float[jax.Array, "states 2"]:
    """Angles and speeds of the grid, speeds within an angle."""
    angle = jnp.linspace(-jnp.pi, jnp.pi, ANGLES, endpoint=False)
    speed = jnp.linspace(-8.0, 8.0, SPEEDS)
    return jnp.stack([jnp.repeat(angle, SPEEDS), jnp.tile(speed, ANGLES)], axis=1)


def between(states: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n states"]:
    """Weights of the four nodes around each state, as of bilinear interpolation."""
    row = (states[..., 0] + np.pi) * (ANGLES / (2 * np.pi))
    column = np.clip((states[..., 1] + 8) * ((SPEEDS - 1) / 16), 0, SPEEDS - 1)
    low, left = np.floor(row), np.minimum(np.floor(column), SPEEDS - 2)
    u, v = row - low, column - left
    out = np.zeros((*row.shape, ANGLES * SPEEDS))
    for up, down in ((0, 1 - u), (1, u)):
        for right, weight in ((0, 1 - v), (1, v)):
            node = (low + up).astype(int) % ANGLES * SPEEDS + (left + right).astype(int)
            np.put_along_axis(out, node[..., None], (down * weight)[..., None], axis=-1)
    return out
