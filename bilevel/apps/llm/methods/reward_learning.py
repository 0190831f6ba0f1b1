"""Alignment as a bilevel problem: learn the reward whose best policy explains the feedback.

    minimise over x   w1 · −E log π_x(demonstration) + w2 · −E log σ(r_x(chosen) − r_x(rejected))
    where             π_x maximises E r_x − β KL(π ‖ π_ref)

The upper gradient needs no Hessian: that of the first part is
`(E_(π_x) ∇r − E_demonstrations ∇r)/β`. So `problem` declares it as the hypergradient and a policy
step as the lower step. TTSA on this problem is the single loop: a few policy steps, one reward
step, and so on.

With only demonstrations this is inverse reinforcement learning (IRL), with both AIHF, and with
only preferences RLHF in one loop. `aihf.AIHF` runs these.

References: Zeng, Li, Garcia, Hong. "Maximum-likelihood inverse reinforcement learning with
finite-time guarantees". NeurIPS 2022, arXiv:2210.01808. Li, Zeng, Liao, Li, Kang, Garcia, Hong.
"Getting more juice out of the SFT data: reward learning from human demonstration improves SFT for
LLM alignment". NeurIPS 2024, arXiv:2405.17888. Li, Zeng, Garcia, Hong and others. "Joint reward and
policy learning with demonstrations and human feedback improves alignment". 2024, arXiv:2406.06874.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.task import Feedback, Task, Weights, by_counts
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses, repeated, stopped
from bilevel.apps.llm.policy_steps.policy_step import (
    AbstractPolicyStep,
    Fixed,
    Goal,
    Hold,
    LowerStep,
    Moving,
    Prompts,
)
from bilevel.apps.llm.rewards import losses
from bilevel.apps.llm.rewards.losses import AbstractContrast
from bilevel.apps.llm.rewards.reward import Reward, judged
from bilevel.fields import Checked
from bilevel.problem import Batch, Problem
from bilevel.typing import RandomKey, Scalar

# --- negatives: the policy's own responses to the prompts of demonstrations -------------------


Own = Callable[[PyTree], tuple[Float[Array, "n k"], Float[Array, "n k"]]]


class AbstractNegatives(Checked):
    """Rewards of the current policy's responses to the prompts of demonstrations."""

    @abc.abstractmethod
    def __call__(
        self, policy: AbstractPolicy, reward: Reward, y: PyTree, prompts: PyTree, key: RandomKey
    ) -> Own:
        """`x -> (rewards, weights)`; each row of weights sums to 1. y has its gradient stopped."""


class Enumerate(AbstractNegatives):
    """All responses, weighted by their probability: for policies that are `enumerable`."""

    def __call__(self, policy, reward, y, prompts, key):
        if not policy.enumerable:
            raise TypeError(
                f"{type(policy).__name__} cannot list its responses; draw them: Draw(samples=1)."
            )
        weights = jnp.exp(stopped(policy.log_table(y)))[prompts]
        return lambda x: (policy.reward_table(reward, x)[prompts], weights)


class Draw(AbstractNegatives):
    """A few responses of the current policy.

    Attributes:
        temperature: 1 makes the hypergradient unbiased; lower values are a heuristic with another
            fixed point.
    """

    samples: int = eqx.field(static=True, default=1)
    temperature: float = eqx.field(static=True, default=1.0)

    def __call__(self, policy, reward, y, prompts, key):
        repeated_prompts = repeated(prompts, self.samples)
        responses = stopped(policy.sample(y, repeated_prompts, key, temperature=self.temperature))

        def rewards(x):
            found = reward(x, responses).reshape(-1, self.samples)
            return found, jnp.full_like(found, 1 / self.samples)

        return rewards


def _stored(reward: Reward, responses: Responses) -> Own:
    """Rewards of stored responses, one per demonstration."""

    def rewards(x):
        found = reward(x, responses)[:, None]
        return found, jnp.ones_like(found)

    return rewards


# --- the problem -----------------------------------------------------------------------------


class Criterion(eqx.Module):
    """The upper loss and its hypergradient."""

    goal: Goal
    contrast: AbstractContrast
    negatives: AbstractNegatives
    weights: Weights
    decay: ScalarLike
    per_token: bool = eqx.field(static=True)

    def upper(self, x: PyTree, y: PyTree, batch: Feedback) -> Scalar:
        """`w1 · −E log π_y(demonstration) + w2 · preference loss + (decay/2) ‖x‖²`."""
        total = self._common(x, batch)
        demonstrations = batch.demonstrations if batch.pairs is None else batch.pairs[0]
        if demonstrations is not None:
            fit = -self.goal.policy.logprob(y, demonstrations).mean()
            total = total + _like(self.weights.demonstrations, total) * fit.astype(total.dtype)
        return total

    def hypergradient(self, x: PyTree, y: PyTree, batch: Batch) -> PyTree:
        """The hypergradient: the gradient in x of the contrast replaces the demonstration part."""
        feedback, prompts = batch.upper, batch.lower
        policy, reward = self.goal.policy, self.goal.reward
        if feedback.pairs is not None:
            demonstrations, responses = feedback.pairs
            own = _stored(reward, responses)
        elif feedback.demonstrations is not None:
            demonstrations = feedback.demonstrations
            # Independent of the draw of the policy step.
            key = jax.random.fold_in(prompts.key, 0xA11)
            own = self.negatives(policy, reward, y, demonstrations.prompts, key)
        else:
            return jax.grad(self._common)(x, feedback)

        def loss(x):
            total, demonstrated = self._common(x, feedback), reward(x, demonstrations)
            found = self.contrast(demonstrated, *own(x), self.goal.beta)
            return total + _like(self.weights.demonstrations, total) * found.astype(total.dtype)

        return jax.grad(loss)(x)

    def _common(self, x: PyTree, batch: Feedback) -> Scalar:
        """The terms that depend on x alone: the decay and the preference loss."""
        total = _like(self.decay, trees.dot(x, x)) / 2 * trees.dot(x, x)
        if batch.preferences is None:
            return total
        found = judged(self.goal.reward, x, batch.preferences, per_token=self.per_token)
        return total + _like(self.weights.preferences, total) * found.astype(total.dtype)


class Upper(eqx.Module):
    criterion: Criterion

    def __call__(self, x, y, batch):
        return self.criterion.upper(x, y, batch)


class Hypergradient(eqx.Module):
    criterion: Criterion

    def __call__(self, x, y, batch):
        return self.criterion.hypergradient(x, y, batch)


class Lower(eqx.Module):
    """`β KL(π_y ‖ π_ref) − E r`, exact for an enumerated policy, otherwise on drawn responses.

    On drawn responses every factor `exp(log π − stop(log π))` equals 1 and has the derivative of
    the distribution, so the value and derivatives of any order are unbiased.
    """

    goal: Goal

    def __call__(self, x: PyTree, y: PyTree, batch: Prompts) -> Scalar:
        policy, reward, beta = self.goal.policy, self.goal.reward, self.goal.beta
        if policy.enumerable:
            log_p = policy.log_table(y)
            rewards = policy.reward_table(reward, x).astype(log_p.dtype)
            log_ratio = log_p - policy.log_table(self.goal.reference)
            cost = _like(beta, log_p) * log_ratio - rewards
            return (jnp.exp(log_p) * cost).sum(axis=-1).mean()
        responses = stopped(policy.sample(y, batch.prompts, batch.key))
        logp = policy.logprob(y, responses)
        log_ratio = logp - policy.logprob(self.goal.reference, responses).astype(logp.dtype)
        cost = _like(beta, logp) * log_ratio - reward(x, responses).astype(logp.dtype)
        return (jnp.exp(logp - jax.lax.stop_gradient(logp)) * cost).mean()


def _like(number: ScalarLike, array: Array) -> Array:
    return jnp.asarray(number, array.dtype)


def problem(
    task: Task,
    step: AbstractPolicyStep | Hold,
    *,
    contrast: AbstractContrast | None = None,
    negatives: AbstractNegatives | None = None,
    anchor: Fixed | Moving | None = None,
    weights: Weights | None = None,
    decay: ScalarLike = 0.0,
    per_token: bool = False,
    policy_reward: Reward | None = None,
) -> Problem:
    """The bilevel problem of reward learning, with its hypergradient and its lower step.

    Upper batches are `Feedback`, lower ones `Prompts`; `data` makes both.

    Args:
        step: the policy step, or `Hold()`.
        contrast: `losses.Linear()` if `None`.
        negatives: if `None`, `Enumerate()` for an enumerable policy, else `Draw()`.
        anchor: the reference of the policy step: `Fixed()` if `None`, or `Moving(every)`.
        weights: proportional to the counts if `None`.
        decay: weight decay of the reward, `(decay/2) ‖x‖²`.
        per_token: apply the preference loss at every token from the first difference of the two
            responses; the reward needs a method `tokens`, as `reward.Head` has.
        policy_reward: the reward used by the policy step, such as `reward.Normalised(...)`.
    """
    if task.reward is None:
        raise ValueError("the task has no reward to learn: give Task(..., reward=...).")
    goal = Goal(task.policy, task.reward, task.reference, task.beta)
    policy_goal = (
        goal
        if policy_reward is None
        else Goal(task.policy, policy_reward, task.reference, task.beta)
    )
    listed = task.policy.enumerable
    criterion = Criterion(
        goal,
        losses.Linear() if contrast is None else contrast,
        (Enumerate() if listed else Draw()) if negatives is None else negatives,
        Weights(*map(jnp.asarray, by_counts(task) if weights is None else weights)),
        jnp.asarray(decay),
        per_token,
    )
    moves = step if isinstance(step, Hold) else LowerStep(policy_goal, step, anchor or Fixed())
    return Problem(
        Upper(criterion),
        Lower(policy_goal),
        hypergradient=Hypergradient(criterion),
        lower_step=moves,
    )
