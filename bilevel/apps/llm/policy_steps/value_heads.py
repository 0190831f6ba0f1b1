"""PPO with a value head for each of several rewards, and one for the divergence.

Moskovitz et al. "Confronting reward model overoptimization with constrained RLHF". ICLR 2024,
arXiv:2310.04373.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.policies.policy import repeated, stopped
from bilevel.apps.llm.policy_steps.policy_step import AbstractPolicyStep, Goal, clipped
from bilevel.apps.llm.policy_steps.ppo import (
    Critic,
    PPOState,
    generalised_advantages,
    masked_mean,
    whitened,
)
from bilevel.apps.llm.rewards.mixed import Mixed
from bilevel.fields import fraction, nonnegative
from bilevel.updates import AbstractUpdate, as_update

PerHead = Float[Array, "n time heads"]


class ValueHeads(AbstractPolicyStep):
    """Advantages of every reward of a `Mixed` and of the divergence, from a head each, then mixed.

    `A = Σ_i μ_i A_i + (m − Σ_i μ_i) β A_KL`, divided by `m − Σ_i μ_i`. A head learns the value of
    one reward, which does not change as the multipliers do.

    Attributes:
        critic: its values `(n, time, m + 1)` are those of the m rewards, and of `−log(π/π_ref)`.
        samples: responses per prompt.
        epochs: steps on the same responses.
        whiten: normalise the advantages of each head before they are mixed, as in the paper. The
            multipliers are then relative to the spread of the rewards, and β to that of the
            divergence. If False, the maximiser is that of `Mixed`.
    """

    critic: Critic
    update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    critic_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    samples: int = eqx.field(static=True, default=4)
    epochs: int = eqx.field(static=True, default=4)
    clip: ScalarLike = nonnegative(0.2)
    gamma: ScalarLike = nonnegative(1.0)
    decay: ScalarLike = fraction(0.95)
    whiten: bool = eqx.field(static=True, default=True)

    def init(self, goal, x, y):
        _mixed(goal)
        start = trees.copy(self.critic.start)
        return PPOState(self.update.init(y), start, self.critic_update.init(start))

    def step(self, goal, x, y, state, batch, k):
        reward = _mixed(goal)
        responses = goal.policy.sample(y, repeated(batch.prompts, self.samples), batch.key)
        old = goal.policy.token_logprobs(y, responses)
        log_ratio = old - goal.policy.token_logprobs(goal.reference, responses).astype(old.dtype)
        responses, old, log_ratio, each = stopped(
            (responses, old, log_ratio, reward.each(responses).astype(old.dtype))
        )
        mask = responses.mask
        paid = token_rewards(each, log_ratio, mask)
        values = stopped(self.values(state.critic, responses).astype(old.dtype))
        heads = [generalised_advantages(paid[..., i], values[..., i], self.gamma, self.decay)
                 for i in range(paid.shape[-1])]  # fmt: skip
        returns = jnp.stack(heads, axis=-1) + values
        factors = jnp.append(reward.weights(x), goal.beta_like(x)).astype(old.dtype)
        heads = [whitened(head, mask) for head in heads] if self.whiten else heads
        advantages = stopped(jnp.stack(heads, axis=-1) @ factors)

        def loss(y):
            logp = goal.policy.token_logprobs(y, responses)
            return -masked_mean(clipped(logp - old, advantages, self.clip), mask)

        def value_loss(critic):
            error = (self.values(critic, responses).astype(old.dtype) - returns) ** 2
            return masked_mean(error.sum(axis=-1), mask) / 2

        def one(carry, i):
            (y, (policy, critic, of_critic)), j = carry, k * self.epochs + i
            y, policy = self.update.step(jax.grad(loss)(y), policy, y, j)
            slope = jax.grad(value_loss)(critic)
            critic, of_critic = self.critic_update.step(slope, of_critic, critic, j)
            return (y, PPOState(policy, critic, of_critic)), None

        (y, state), _ = jax.lax.scan(one, (y, state), jnp.arange(self.epochs, dtype=k.dtype))
        return y, state

    def values(self, critic: PyTree, responses) -> PerHead:
        """Zero outside the mask."""
        found = self.critic.values(critic, responses)
        return jnp.where(responses.mask[..., None], found, 0)


def _mixed(goal: Goal) -> Mixed:
    if not isinstance(goal.reward, Mixed):
        raise TypeError(
            "ValueHeads needs several rewards, and the goal has one; give rewards.mixed.Mixed, or "
            "take PPO."
        )
    return goal.reward


def token_rewards(each: Float[Array, "n rewards"], log_ratio: Array, mask: Array) -> PerHead:
    """Each reward at the last token of a response, and `−log(π/π_ref)` at every token."""
    place = jnp.arange(mask.shape[1])[None]
    end = place == jnp.where(mask, place, -1).max(axis=1, keepdims=True)
    paid = jnp.where(end[..., None], each[:, None], 0)
    return jnp.concatenate([paid, -log_ratio[..., None]], axis=-1)
