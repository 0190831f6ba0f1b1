"""Steps of an enumerated policy, by sums over all responses."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.apps.llm.policies.policy import AbstractPolicy
from bilevel.apps.llm.policies.tables import optimum
from bilevel.apps.llm.policy_steps.policy_step import AbstractPolicyStep, Goal
from bilevel.fields import nonnegative
from bilevel.updates import AbstractUpdate, as_update


class Mirror(AbstractPolicyStep):
    """`log π ← (1 − rate) log π + rate (log π_ref + r/β)`, normalised; at rate 1 the maximiser.

    For a bandit: an enumerated policy whose parameters are its logits.
    """

    rate: ScalarLike = nonnegative(1.0)

    def init(self, goal, x, y):
        if not _listed(goal, self).tabular:
            raise TypeError(
                "Mirror sets the probability of every response, which this policy's parameters "
                "cannot: use it with enumerated.bandit(...), or take ExactGradient."
            )
        return None

    def step(self, goal, x, y, state, batch, k):
        policy, rate = _listed(goal, self), jnp.asarray(self.rate, y.dtype)
        rewards = policy.reward_table(goal.reward, x).astype(y.dtype)
        best = optimum(policy.log_table(goal.reference), rewards, goal.beta)
        mixed = (1 - rate) * policy.log_table(y) + rate * best
        return jax.nn.log_softmax(mixed, axis=-1).astype(y.dtype), state


class ExactGradient(AbstractPolicyStep):
    """A few gradient steps on the exact objective of an enumerated policy, over all prompts.

    Attributes:
        steps: number of gradient steps per call.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default=0.1)
    steps: int = eqx.field(static=True, default=5)

    def init(self, goal, x, y):
        return self.update.init(y)

    def step(self, goal, x, y, state, batch, k):
        policy = _listed(goal, self)
        rewards, log_reference = (
            policy.reward_table(goal.reward, x),
            policy.log_table(goal.reference),
        )

        def loss(y):
            log_p = policy.log_table(y)
            gain = rewards.astype(log_p.dtype) - goal.beta_like(log_p) * (log_p - log_reference)
            return -(jnp.exp(log_p) * gain).sum(axis=-1).mean()

        def one(carry, i):
            y, state = carry
            return self.update.step(jax.grad(loss)(y), state, y, k * self.steps + i), None

        (y, state), _ = jax.lax.scan(one, (y, state), jnp.arange(self.steps, dtype=k.dtype))
        return y, state


def _listed(goal: Goal, step: AbstractPolicyStep) -> AbstractPolicy:
    if not goal.policy.enumerable:
        raise TypeError(
            f"{type(step).__name__} sums over all responses, and {type(goal.policy).__name__} "
            "cannot list them; take a step that draws some: LeaveOneOut, PPO, GRPO."
        )
    return goal.policy
