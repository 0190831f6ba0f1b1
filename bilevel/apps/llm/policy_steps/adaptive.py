"""A policy step that holds the divergence from the reference at a target, by moving β."""

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
    own: Any  # of the step that is adapted


class Adaptive(AbstractPolicyStep):
    """Another policy step, with β raised where `KL(π ‖ π_ref)` is above its target, else lowered.

    After every call `β ← β (1 + rate · clip(KL/target − 1, −clip, clip))`, from the goal's β on.
    The divergence is exact for an enumerated policy, else the mean log-ratio of responses drawn for
    it. The upper level goes on with the task's β, a factor of the demonstrations' part there.

    Ziegler, Stiennon, Wu, Brown, Radford, Amodei, Christiano, Irving. "Fine-tuning language models
    from human preferences". 2019, arXiv:1909.08593.

    Attributes:
        policy_step: the step.
        target: nats a response, summed over its tokens.
        samples: responses drawn to a prompt, to measure by.
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
    """`KL(π_y ‖ π_ref)` of whole responses, a mean over prompts: all of them, or those of a batch.

    Exact for an enumerated policy, else the mean log-ratio of `samples` responses to each prompt.
    """
    policy = goal.policy
    if policy.enumerable:
        return kl(policy.log_table(y), policy.log_table(goal.reference))
    key = jax.random.fold_in(batch.key, 0xDA9)  # another draw than the step was made with
    responses = stopped(policy.sample(y, repeated(batch.prompts, samples), key))
    logp = policy.logprob(y, responses)
    return (logp - policy.logprob(goal.reference, responses).astype(logp.dtype)).mean()
