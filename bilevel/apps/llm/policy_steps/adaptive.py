"""A policy step with adaptive β, which keeps the KL divergence from the reference at a target."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar, ScalarLike

from bilevel import trees
from bilevel.apps.llm.policies.policy import repeated, stopped
from bilevel.apps.llm.policies.tables import kl
from bilevel.apps.llm.policy_steps.policy_step import AbstractPolicyStep, Goal, Prompts
from bilevel.fields import nonnegative


class AdaptiveState(NamedTuple):
    beta: Scalar
    own: Any  # state of the adapted step


class Adaptive(AbstractPolicyStep):
    """Adaptive KL control: raises β if `KL(π ‖ π_ref)` is above its target, otherwise lowers it.

    After every call of another policy step, `β ← β (1 + rate · clip(KL/target − 1, −clip, clip))`,
    starting at the β of the goal. The divergence is exact for an enumerated policy, otherwise the
    mean log-ratio of drawn responses. The upper level keeps the β of the task, a factor of its
    demonstration part.

    Ziegler, Stiennon, Wu, Brown, Radford, Amodei, Christiano, Irving. "Fine-tuning language models
    from human preferences". 2019, arXiv:1909.08593.

    Attributes:
        policy_step: the policy step whose β is adapted.
        target: target divergence in nats per response, summed over its tokens.
        samples: responses drawn per prompt to measure the divergence.
    """

    policy_step: AbstractPolicyStep
    target: ScalarLike = nonnegative()
    rate: ScalarLike = nonnegative(0.1)
    clip: ScalarLike = nonnegative(0.2)
    samples: int = eqx.field(static=True, default=1)

    def init(self, goal, x, y):
        beta = jnp.asarray(goal.beta, trees.widest(y))
        return AdaptiveState(beta, self.policy_step.init(goal, x, y))

    def step(self, goal, x, y, state, batch, k):
        now = Goal(goal.policy, goal.reward, goal.reference, state.beta)
        y, own = self.policy_step.step(now, x, y, state.own, batch, k)
        found = divergence(goal, y, batch, self.samples).astype(state.beta.dtype)
        target, rate, clip = (
            jnp.asarray(number, found.dtype) for number in (self.target, self.rate, self.clip)
        )
        error = jnp.clip(found / target - 1, -clip, clip)
        return y, AdaptiveState(state.beta * (1 + rate * error), own)


def divergence(goal: Goal, y: PyTree, batch: Prompts, samples: int = 1) -> Scalar:
    """`KL(π_y ‖ π_ref)` of whole responses, averaged over all prompts or those of a batch.

    Exact for an enumerated policy, otherwise the mean log-ratio of `samples` responses per prompt.
    """
    policy = goal.policy
    if policy.enumerable:
        return kl(policy.log_table(y), policy.log_table(goal.reference))
    key = jax.random.fold_in(batch.key, 0xDA9)  # independent of the draw of the step
    responses = stopped(policy.sample(y, repeated(batch.prompts, samples), key))
    logp = policy.logprob(y, responses)
    return (logp - policy.logprob(goal.reference, responses).astype(logp.dtype)).mean()
