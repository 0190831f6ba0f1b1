"""An expert where none is known: augmented random search on linear policies.

Reference: Mania, Guy, Recht. "Simple random search of static linear policies is competitive for
reinforcement learning". NeurIPS 2018, arXiv:1803.07055.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.rollouts import Act
from bilevel.typing import RandomKey


class Seen(NamedTuple):
    """How many observations there were, their sum, and that of their squares."""

    number: Scalar
    total: Float[Array, " d"]
    squares: Float[Array, " d"]

    def normal(self, seen: Float[Array, " d"]) -> Float[Array, " d"]:
        mean = self.total / self.number
        spread = jnp.sqrt(jnp.maximum(self.squares / self.number - mean**2, 1e-4))
        return (seen - mean) / spread


class Linear(NamedTuple):
    """`a = clip(W s, −1, 1)` with s an observation of mean 0 and deviation 1."""

    weights: Float[Array, "m d"]
    seen: Seen

    def __call__(self, key: RandomKey, seen: Float[Array, " d"]) -> Float[Array, " m"]:
        return jnp.clip(self.weights @ self.seen.normal(seen), -1, 1)


def search(
    env: Environment,
    key: RandomKey,
    *,
    steps: int = 150,
    directions: int = 32,
    best: int = 16,
    spread: float = 0.03,
    step_size: float = 0.02,
    bonus: float = 1.0,
) -> Act:
    """Move the weights along the better of random directions, each tried both ways.

    Args:
        best: directions that count.
        spread: by which weights are tried.
        bonus: what the true reward gives for being alive, left out of the search: with it, standing
            still is found and nothing else.
    """
    d, m = len(env.scale), env.actions.size  # type: ignore[union-attr]

    def move(policy: Linear, key):
        toward, play = jax.random.split(key)
        turns = jax.random.normal(toward, (directions, m, d))
        tried = policy.weights[None] + spread * jnp.concatenate([turns, -turns])
        keys = jax.random.split(play, 2 * directions)
        found, seen = jax.vmap(lambda w, k: _episode(env, policy._replace(weights=w), k, bonus))(
            tried, keys
        )
        there, back = jnp.split(found, 2)
        some = jnp.argsort(-jnp.maximum(there, back))[:best]
        there, back = there[some], back[some]
        slope = jnp.einsum("n,nij->ij", there - back, turns[some]) / best
        scale = jnp.concatenate([there, back]).std() + 1e-6
        seen = jax.tree.map(lambda a, b: a + b.sum(axis=0), policy.seen, seen)
        return Linear(policy.weights + step_size / scale * slope, seen), None

    start = Linear(jnp.zeros((m, d)), Seen(jnp.ones(()), jnp.zeros(d), jnp.ones(d)))
    keys = jax.random.split(key, steps)
    return jax.jit(lambda at: jax.lax.scan(move, at, keys)[0])(start)


def _episode(env: Environment, policy: Linear, key: RandomKey, bonus: float):
    """The return without the bonus, and what was seen."""
    first, rest = jax.random.split(key)
    zero = jnp.zeros(())

    def step(carry, key):
        state, alive, total, seen = carry
        here = env.observe(state)
        after, shown = env.step(key, state, policy(key, here))
        total = total + alive * (shown.reward - bonus)
        seen = jax.tree.map(lambda a, b: a + alive * b, seen, Seen(zero + 1, here, here**2))
        return (after, alive * (1 - shown.ended.astype(zero.dtype)), total, seen), None

    nothing = jax.tree.map(jnp.zeros_like, policy.seen)
    start = (env.reset(first), zero + 1, zero, nothing)
    (_, _, total, seen), _ = jax.lax.scan(step, start, jax.random.split(rest, env.horizon))
    return total, seen
