"""A user whose taste is known and drifts, and how far a policy stays behind it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.apps.rl.experience.feedback import Arrays, Feedback, Kind
from bilevel.apps.rl.experience.learning import Learner, method, problem
from bilevel.apps.rl.experience.loop import Asked
from bilevel.problem import Batch
from bilevel.typing import RandomKey


class SimulatedUser:
    """Prefers responses by hidden utilities, with Bradley-Terry noise; they may drift."""

    def __init__(self, utilities: Float[np.ndarray, "prompts responses"], drift=0.0, seed: int = 0):
        self.utilities = np.array(utilities, float)
        self.drift, self._draw = drift, np.random.default_rng(seed)

    def __call__(self, asked: Asked) -> Feedback:
        first, second = self.utilities[asked.prompt, list(asked.responses)]
        value = float(self._draw.uniform() < 1 / (1 + np.exp(second - first)))
        noise = self._draw.normal(size=self.utilities.shape)
        self.utilities = (1 - self.drift) * self.utilities + np.sqrt(2 * self.drift) * noise
        return Feedback(*asked, Kind.PREFERENCE, value)


class Regret(NamedTuple):
    """Mean of `J(π*) − J(π)` over the second half of a stream, `J = E[u] − β KL`."""

    single: Array  # one step of each level for each comparison
    batch: Array  # optimised anew every 500 comparisons
    frozen: Array  # the reward stays as it was after a quarter


def regrets(
    key: RandomKey,
    *,
    arms: int = 10,
    steps: int = 4000,
    drift: float = 0.002,
    explore: float = 0.2,
    every: int = 500,
    learner: Learner = Learner(),
    decay: bool = False,
) -> Regret:
    """Three ways to learn from the same user, whose utilities follow a mean-reverting walk.

    Args:
        decay: reward steps and policy steps of order 1/√t, for a user who does not drift.
    """
    reference = jnp.full((1, arms), 1 / arms)
    solved, beta = problem(reference, learner), learner.beta
    slope_of = solved.hypergradient
    assert slope_of is not None
    first, rest = jax.random.split(key)

    def objective(y, u):
        return jnp.sum(jnp.exp(y) * (u - beta * (y - jnp.log(reference[0]))))

    def behind(y, u):
        best = jax.nn.log_softmax(jnp.log(reference[0]) + u / beta)
        return objective(best, u) - objective(y, u)

    def compare(key, y, u):
        """A comparison of two different arms."""
        keys = jax.random.split(key, 4)
        law = jnp.where(jax.random.uniform(keys[0]) < explore, jnp.zeros(arms), y)
        a = jax.random.categorical(keys[1], law)
        b = jax.random.categorical(keys[2], jnp.where(jnp.arange(arms) == a, -jnp.inf, law))
        value = jax.random.uniform(keys[3]) < jax.nn.sigmoid(u[a] - u[b])
        zero = jnp.zeros_like(a)
        return Arrays(zero, a, b, zero, value.astype(u.dtype))

    def refit(told, x):
        """The reward of a window of comparisons, with a little decay."""

        def step(_, x):
            slope = jax.vmap(lambda one: slope_of(x, x, Batch(one)))(told).mean(axis=0)
            return x - 2.0 * (slope + 1e-3 * x)

        return jax.lax.fori_loop(0, 200, step, x)

    def stream(way):
        single = method(learner)

        def step(carry, key):
            state, u, told = carry
            ours, noise = jax.random.split(key)
            one = compare(ours, state.y[0], u)
            new, _ = single.step(solved, state, Batch(one))
            if decay:
                share = (1 + state.k.astype(u.dtype) / 20) ** -0.5
                new = new._replace(x=state.x + share * (new.x - state.x))
            if way == "frozen":
                late = state.k >= steps // 4
                new = new._replace(x=jnp.where(late, state.x, new.x))
            if way == "batch":
                told = jax.tree.map(lambda all, it: all.at[state.k % every].set(it), told, one)
                x = jax.lax.cond(
                    (state.k + 1) % every == 0, refit, lambda told, x: x, told, state.x
                )
                y = jax.nn.log_softmax(jnp.log(reference) + x / beta)
                new = new._replace(x=x, y=y)
            walk = jnp.sqrt(2 * drift) * jax.random.normal(noise, u.shape, u.dtype)
            return (new, (1 - drift) * u + walk, told), behind(new.y[0], u)

        state = single.init(solved, jnp.zeros((1, arms)), jnp.log(reference))
        u = jax.random.normal(first, (arms,), reference.dtype)
        blank = jnp.zeros(every, int)
        told = Arrays(blank, blank, blank, blank, jnp.zeros(every, reference.dtype))
        _, found = jax.lax.scan(step, (state, u, told), jax.random.split(rest, steps))
        return found[steps // 2 :].mean()

    return Regret(*map(stream, Regret._fields))
