"""A learned reward over a plane of states, and what its policy is worth over the run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.apps.rl.neural import actions
from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum
from bilevel.apps.rl.neural.experts import Demos
from bilevel.apps.rl.neural.irl import Policy
from bilevel.report import figures

DRAWN = 64


class Plane(NamedTuple):
    """Observations over two numbers; the others stay as they are."""

    names: tuple[str, str]
    extent: tuple[float, float, float, float]
    observations: Float[Array, "rows columns d"]
    true: Float[np.ndarray, "rows columns"] | None


def plane(env: Environment, demos: Demos, n: int = 61) -> Plane:
    """Angle and its speed where there is a pole; else the first two numbers observed."""
    if isinstance(env, CartPole):
        a, b = _mesh((-0.21, 0.21, -2.0, 2.0), n)
        zero = jnp.zeros_like(a)
        names = "angle (rad)", "angular speed (rad/s)"
        return Plane(names, (-0.21, 0.21, -2.0, 2.0), jnp.stack([zero, zero, a, b], -1), None)
    if isinstance(env, Pendulum):
        a, b = _mesh((-np.pi, np.pi, -8.0, 8.0), n)
        states = jnp.stack([a, b], -1)
        every = actions.grid(env.actions)
        still = every[len(every) // 2]
        true = jax.vmap(jax.vmap(lambda s: env.reward(s, still)))(states)
        seen = jax.vmap(jax.vmap(env.observe))(states)
        names = "angle from upright (rad)", "speed (rad/s)"
        return Plane(names, (-np.pi, np.pi, -8.0, 8.0), seen, np.asarray(true))
    flat = np.asarray(demos.observations).reshape(-1, len(env.scale))
    low, high, middle = flat.min(axis=0), flat.max(axis=0), flat.mean(axis=0)
    second = min(1, len(middle) - 1)
    extent = (low[0], high[0], low[second], high[second])
    a, b = _mesh(extent, n)
    seen = jnp.broadcast_to(jnp.asarray(middle), (n, n, len(middle)))
    seen = seen.at[..., second].set(b).at[..., 0].set(a)
    return Plane(("observation 0", f"observation {second}"), extent, seen, None)


def _mesh(extent, n: int) -> tuple[Array, Array]:
    left, right, low, high = extent
    a, b = np.meshgrid(np.linspace(left, right, n), np.linspace(low, high, n))
    return jnp.asarray(a), jnp.asarray(b)


def reward(policy: Policy, x, y, over: Plane) -> Float[np.ndarray, "rows columns"]:
    """The mean of the reward under the policy, of `DRAWN` actions at each place."""
    seen = over.observations

    def one(key):
        keys = jax.random.split(key, seen.shape[:-1])
        action = jax.vmap(jax.vmap(policy.act(y)))(keys, seen)
        zero = jnp.zeros(seen.shape[:-1], seen.dtype)
        return policy.reward(x, policy.scaled(seen), action, zero)

    keys = jax.random.split(jax.random.key(0), DRAWN)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys).mean(axis=0))(keys))


def planes(panels: dict[str, Float[np.ndarray, "rows columns"]], over: Plane) -> Any:
    """A panel for each reward."""
    with figures.style():
        figure = figures.new_figure(9.6 if len(panels) > 1 else 5.6, 3.8)
        for axes, (name, image) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            drawn = axes.imshow(image, origin="lower", extent=over.extent, aspect="auto")
            axes.set(title=name, xlabel=over.names[0], ylabel=over.names[1])
            axes.grid(False)
            figure.colorbar(drawn, ax=axes, shrink=0.85)
        return figure
