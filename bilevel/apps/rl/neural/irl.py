"""Inverse RL with networks: a reward above, the soft policy that follows it below."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, ScalarLike

from bilevel import trees
from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.experts import Demos
from bilevel.apps.rl.neural.networks import over
from bilevel.apps.rl.neural.rollouts import episodes
from bilevel.apps.rl.neural.soft_actor import SoftActor
from bilevel.apps.rl.neural.soft_q import SoftQ, settling
from bilevel.data import Data
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.schedules import Cosine
from bilevel.typing import RandomKey
from bilevel.updates import FromOptax

Policy = SoftQ | SoftActor


class Rows(NamedTuple):
    """Moves of episodes, each padded to the horizon with what has ended."""

    seen: Float[Array, "n d"]
    action: Array  # (n,), or (n, m)
    absorbed: Float[Array, " n"]
    weight: Float[Array, " n"]  # 1, or 0 for rows that no episode has


class Drawn(NamedTuple):
    """A batch of the upper level: moves of the expert, and randomness for the agent's."""

    expert: Rows
    key: RandomKey


def rows(demos: Demos, horizon: int, scale: Array) -> Rows:
    """The moves of demonstrations. One that ended for good is followed by its end."""
    n, longest = demos.actions.shape[:2]
    inside = jnp.arange(longest)[None] < demos.lengths[:, None]
    seen = demos.observations[:, :-1]
    seen = seen / over(scale, seen)
    flat = lambda a: a.reshape(n * longest, *a.shape[2:])  # noqa: E731
    ended = jnp.where(demos.ended, horizon - demos.lengths, 0).astype(seen.dtype)
    kept = lambda a: jnp.where(inside.reshape(n, longest, *[1] * (a.ndim - 2)), a, 0)  # noqa: E731
    none = lambda a: jnp.zeros((n, *a.shape[2:]), a.dtype)  # noqa: E731
    return Rows(
        jnp.concatenate([flat(kept(seen)), none(seen)]),
        jnp.concatenate([flat(kept(demos.actions)), none(demos.actions)]),
        jnp.concatenate([jnp.zeros(n * longest, seen.dtype), jnp.ones(n, seen.dtype)]),
        jnp.concatenate([flat(inside.astype(seen.dtype)), ended]),
    )


def agent(policy: Policy, y, key: RandomKey, n: int) -> Rows:
    """The moves of n whole episodes of the policy."""
    steps, alive = episodes(policy.env, policy.act(y), key, n)
    seen = policy.scaled(steps.before.reshape(-1, steps.before.shape[-1]))
    absorbed = (~alive).ravel().astype(seen.dtype)
    action = steps.action.reshape(-1, *steps.action.shape[2:])
    return Rows(seen, action, absorbed, jnp.ones_like(absorbed))


def follower(env: Environment, reward: Callable, *, steps: int, **settings: Any) -> Policy:
    """The lower level for the actions of an environment, which settles over `steps`."""
    kind = SoftActor if isinstance(env.actions, Box) else SoftQ
    return kind(env, reward, update=settling(steps), **settings)


def problem(
    policy: Policy, *, episodes: int = 8, decay: ScalarLike = 0.0, adversarial: bool = False
) -> Problem:
    """Maximum likelihood of demonstrations over x, the parameters of `policy.reward`.

    y are the weights of the policy. The upper loss is `−E[log π(a | s)]` over the moves of
    demonstrations, and its hypergradient the mean of `∇r` over the agent's episodes minus that over
    the demonstrations, divided by the temperature: both undiscounted, over the whole horizon. Pass
    the problem to `TTSA` with the data of `data`.

    Args:
        episodes: played by the agent for each hypergradient.
        decay: weight of half the squared x.
        adversarial: be GAIL instead: `policy.reward` without bound tells the agent's moves, by
            logistic regression, from those of the demonstrations.

    Reference: Zeng, Li, Garcia, Hong. "Maximum-likelihood inverse reinforcement learning with
    finite-time guarantees". NeurIPS 2022, arXiv:2210.01808. GAIL: Ho, Ermon. "Generative
    adversarial imitation learning". NeurIPS 2016, arXiv:1606.03476.
    """
    shape, decay = jnp.zeros(episodes), jnp.asarray(decay, float)
    contrast = _adversary if adversarial else _contrast
    if adversarial:
        lower = dataclasses.replace(policy, reward=Partial(_earned, policy.reward))
    else:
        lower = policy
    return Problem(
        Partial(_upper, policy),
        Partial(_lower, lower),
        lower_step=lower,
        hypergradient=Partial(_hypergradient, contrast, policy, shape, decay),
    )


def method(steps: int, step_size: ScalarLike = 1e-3) -> TTSA:
    """Adam on the reward, with a step size that falls to zero along half a cosine.

    Without that the reward keeps moving where the policy is as good as the expert, by steps that
    are noise, and the policy can lose what it had. Take `settling(steps)` for the policy.
    """
    return TTSA(x_update=FromOptax(optax.adam, Cosine(step_size, steps)))


def data(demos: Demos, policy: Policy, batch: int = 1024) -> Data:
    """Moves of the demonstrations, drawn at random, and the randomness of the agent."""
    expert = rows(demos, policy.env.horizon, policy.env.scale)
    up_to = jnp.cumsum(expert.weight)
    return Data(upper=Partial(_draw, expert, up_to, jnp.zeros(batch)), lower=Partial(_key))


def _draw(expert: Rows, up_to: Array, shape: Array, key: RandomKey) -> Drawn:
    first, second = jax.random.split(key)
    return Drawn(draw(expert, up_to, first, len(shape)), second)


def draw(moves: Rows, up_to: Float[Array, " n"], key: RandomKey, batch: int) -> Rows:
    """Moves drawn by weights whose partial sums are given; drawn, they count alike."""
    at = up_to[-1] * jax.random.uniform(key, (batch,), up_to.dtype)
    some = jnp.searchsorted(up_to, at, side="right")
    return jax.tree.map(lambda a: a[some], moves)._replace(weight=jnp.ones_like(at))


def _key(key: RandomKey) -> RandomKey:
    return key


def _mean(reward: Callable, x, moves: Rows):
    values = reward(x, moves.seen, moves.action, moves.absorbed)
    return jnp.sum(moves.weight * values) / moves.weight.sum()


def _contrast(policy: Policy, x, mine: Rows, theirs: Rows):
    gap = _mean(policy.reward, x, mine) - _mean(policy.reward, x, theirs)
    return gap / policy.temperature


def _adversary(policy: Policy, x, mine: Rows, theirs: Rows):
    """Cross-entropy of a discriminator `D = σ(r)` that calls the expert's moves 1."""
    wrong = lambda *a: jax.nn.softplus(policy.reward(*a))  # noqa: E731
    missed = lambda *a: jax.nn.softplus(-policy.reward(*a))  # noqa: E731
    return _mean(wrong, x, mine) + _mean(missed, x, theirs)


def _earned(reward: Callable, *a):
    """`−log(1 − D)`: the reward that GAIL gives the agent."""
    return jax.nn.softplus(reward(*a))


def _hypergradient(contrast, policy, shape, decay, x, y, batch):
    mine = agent(policy, y, batch.upper.key, len(shape))
    slope = jax.grad(contrast, argnums=1)(policy, x, mine, batch.upper.expert)
    return trees.axpy(decay, x, slope)


def _upper(policy: Policy, x, y, batch):
    return -log_likelihood(policy, y, batch.expert)


def log_likelihood(policy: Policy, y, moves: Rows):
    """Mean log probability of the actions in moves that have not ended."""
    seen = moves.seen * over(policy.env.scale, moves.seen)
    logs = policy.log_probability(y, seen, moves.action)
    weight = moves.weight * (1 - moves.absorbed)
    return jnp.sum(weight * logs) / weight.sum()


def _lower(policy: Policy, x, y, key):
    """What a lower step lowers, on moves of its own."""
    return policy.loss(x, y, key)
