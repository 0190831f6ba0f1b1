"""Proximal policy optimisation, with or without a critic."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.policies.policy import size
from bilevel.apps.llm.policy_steps.policy_step import (
    AbstractPolicyStep,
    Drawn,
    Goal,
    PerToken,
    clipped,
    drawn,
)
from bilevel.fields import fraction, nonnegative
from bilevel.typing import Scalar
from bilevel.updates import AbstractUpdate, as_update


class Critic(NamedTuple):
    """A value function: `values(params, responses)`, the expected return before each token."""

    values: Any  # (params, responses) -> (n, time)
    start: PyTree  # its first parameters


class PPOState(NamedTuple):
    policy: Any  # memory of the policy's update
    critic: PyTree  # parameters, if there is a critic
    critic_update: Any


class PPO(AbstractPolicyStep):
    """Proximal policy optimisation with a divergence penalty in the reward of every token.

    `R_t = −β (log π_old − log π_ref) + 1[t last] r`, advantages by `generalised_advantages`. A
    critic, if there is one, has its own parameters, which are part of the state of the step.

    Schulman et al. "Proximal policy optimization algorithms". 2017, arXiv:1707.06347. Stiennon et
    al. "Learning to summarize from human feedback". NeurIPS 2020, arXiv:2009.01325.

    Attributes:
        samples: responses per prompt.
        epochs, minibatches: passes over the responses, and minibatches per pass.
        whiten: normalise the advantages of a call to mean 0 and standard deviation 1 over tokens.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    critic: Critic | None = None
    critic_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    samples: int = eqx.field(static=True, default=1)
    epochs: int = eqx.field(static=True, default=4)
    minibatches: int = eqx.field(static=True, default=1)
    clip: ScalarLike = nonnegative(0.2)
    value_clip: ScalarLike = nonnegative(0.2)
    value_weight: ScalarLike = nonnegative(0.1)
    gamma: ScalarLike = nonnegative(1.0)
    decay: ScalarLike = fraction(0.95)
    whiten: bool = eqx.field(static=True, default=True)

    def init(self, goal, x, y):
        if self.critic is None:
            return PPOState(self.update.init(y), None, None)
        start = trees.copy(self.critic.start)
        return PPOState(self.update.init(y), start, self.critic_update.init(start))

    def step(self, goal, x, y, state, batch, k):
        key, shuffling = jax.random.split(batch.key)
        found = drawn(goal, x, y, batch.prompts, key, self.samples)
        values = self.values(state.critic, found)
        advantages = generalised_advantages(
            self.token_rewards(goal, found), values, self.gamma, self.decay
        )
        returns, mask = advantages + values, found.responses.mask
        if self.whiten:
            advantages = whitened(advantages, mask)
        rows, n = (found._replace(samples=None), values, advantages, returns), size(mask)
        if n % self.minibatches:
            raise ValueError(
                f"{n} responses a call cannot be cut into {self.minibatches} equal minibatches."
            )
        order = jax.vmap(lambda key: jax.random.permutation(key, n))(
            jax.random.split(shuffling, self.epochs)
        ).reshape(self.epochs * self.minibatches, -1)

        def one(carry, at):
            y, state = carry
            i, chosen = at
            part, values, advantages, returns = jax.tree.map(lambda leaf: leaf[chosen], rows)
            j = k * len(order) + i
            direction = jax.grad(self.loss)(y, goal, part, advantages)
            y, policy = self.update.step(direction, state.policy, y, j)
            critic, of_critic = state.critic, state.critic_update
            if self.critic is not None:
                slope = jax.grad(self.value_loss)(critic, part, values, returns)
                critic, of_critic = self.critic_update.step(slope, of_critic, critic, j)
            return (y, PPOState(policy, critic, of_critic)), None

        at = jnp.arange(len(order), dtype=k.dtype), order
        (y, state), _ = jax.lax.scan(one, (y, state), at)
        return y, state

    def values(self, critic: PyTree, found: Drawn) -> PerToken:
        """The value of the critic before every token; zero without one and outside the mask."""
        if self.critic is None:
            return jnp.zeros_like(found.old)
        values = self.critic.values(critic, found.responses).astype(found.old.dtype)
        return jnp.where(found.responses.mask, values, 0)

    def token_rewards(self, goal: Goal, found: Drawn) -> PerToken:
        """`−β (log π_old − log π_ref)` at every token, and the reward at the last."""
        mask = found.responses.mask
        place = jnp.arange(mask.shape[1])[None]
        end = jnp.where(mask, place, -1).max(axis=1, keepdims=True)
        paid = jnp.where(place == end, found.rewards[:, None], 0)
        return paid - goal.beta_like(paid) * (found.old - found.reference)

    def loss(self, y: PyTree, goal: Goal, found: Drawn, advantages: PerToken) -> Scalar:
        """`−min(A ρ, A clip(ρ))`, the mean over tokens."""
        logp = goal.policy.token_logprobs(y, found.responses)
        gain = clipped(logp - found.old, advantages, self.clip)
        return -masked_mean(gain, found.responses.mask)

    def value_loss(self, critic: PyTree, found: Drawn, old: PerToken, returns: PerToken) -> Scalar:
        """`½ max((v − R)², (clip(v) − R)²)`, the mean over tokens, times its weight."""
        values, width = self.values(critic, found), jnp.asarray(self.value_clip, old.dtype)
        near = jnp.clip(values, old - width, old + width)
        error = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
        weight = jnp.asarray(self.value_weight, error.dtype)
        return weight * masked_mean(error, found.responses.mask) / 2


def generalised_advantages(rewards: PerToken, values: PerToken, gamma, decay) -> PerToken:
    """`A_t = Σ_l (γλ)^l δ_(t+l)`, `δ_t = R_t + γ v_(t+1) − v_t`; both zero outside the mask.

    Schulman, Moritz, Levine, Jordan, Abbeel. "High-dimensional continuous control using generalized
    advantage estimation". ICLR 2016, arXiv:1506.02438.
    """
    gamma, decay = (jnp.asarray(number, rewards.dtype) for number in (gamma, decay))
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + gamma * following - values

    def back(later, delta):
        here = delta + gamma * decay * later
        return here, here

    _, found = jax.lax.scan(back, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    return found.T


def whitened(values: PerToken, mask) -> PerToken:
    """Normalise to mean 0 and standard deviation 1 over the masked tokens; zero outside."""
    centred = values - masked_mean(values, mask)
    deviation = jnp.sqrt(masked_mean(centred**2, mask))
    return jnp.where(mask, centred / (deviation + jnp.asarray(1e-8, deviation.dtype)), 0)


def masked_mean(values: PerToken, mask) -> Scalar:
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)
