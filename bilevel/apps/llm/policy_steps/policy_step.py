"""Steps of a policy on `max over π of E r(s, a) − β KL(π ‖ π_ref)`: the lower problem of alignment.

Each step is an object that moves the policy. `LowerStep` combines it with an objective and a
reference, and can be passed as `bl.Problem(lower_step=...)`. The divergence is that of whole
responses: log-ratios are summed over tokens, not averaged. This module contains the steps that draw
responses, except `ppo.PPO`. Those of `exact` enumerate them, and `adaptive.Adaptive` changes β.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses, repeated, stopped
from bilevel.apps.llm.rewards.reward import Reward
from bilevel.fields import Checked, nonnegative
from bilevel.typing import RandomKey, Scalar
from bilevel.updates import AbstractUpdate, as_update

PerToken = Float[Array, "n time"]
Groups = Float[Array, "prompts k"]


class Goal(eqx.Module):
    """The lower problem: maximise `E r − β KL(π ‖ π_ref)` over the parameters y of a policy."""

    policy: AbstractPolicy
    reward: Reward
    reference: PyTree  # parameters of π_ref
    beta: ScalarLike = nonnegative()

    def beta_like(self, array: Array) -> Array:
        return jnp.asarray(self.beta, array.dtype)


class Prompts(NamedTuple):
    """The lower batch: prompts to answer, and a random key for the responses."""

    prompts: PyTree[Array]
    key: RandomKey


class AbstractPolicyStep(Checked):
    """Moves a policy towards the maximum. `state` is what it keeps between calls."""

    @abc.abstractmethod
    def init(self, goal: Goal, x: PyTree, y: PyTree) -> Any:
        """The initial state of the step."""

    @abc.abstractmethod
    def step(
        self, goal: Goal, x: PyTree, y: PyTree, state: Any, batch: Prompts, k: Int[Array, ""]
    ) -> tuple[PyTree, Any]:
        """The new policy parameters and the new state; k counts the calls."""


# --- with responses drawn --------------------------------------------------------------------


class Drawn(NamedTuple):
    """Responses of the current policy, `samples` consecutive rows per prompt, and their values."""

    responses: Responses
    rewards: Float[Array, " n"]
    old: PerToken  # log-probabilities when they were drawn
    reference: PerToken
    samples: int

    def groups(self, values: Float[Array, " n"]) -> Groups:
        return values.reshape(-1, self.samples)


def drawn(goal: Goal, x, y, prompts, key: RandomKey, samples: int) -> Drawn:
    """`samples` responses to each prompt at temperature 1, with gradients stopped."""
    responses = goal.policy.sample(y, repeated(prompts, samples), key)
    old = goal.policy.token_logprobs(y, responses)
    reference = goal.policy.token_logprobs(goal.reference, responses).astype(old.dtype)
    rewards = goal.reward(x, responses).astype(old.dtype)
    rewards, old, reference = stopped((rewards, old, reference))
    return Drawn(responses, rewards, old, reference, samples)


def regularised(goal: Goal, found: Drawn) -> Float[Array, " n"]:
    """`r − β log(π/π_ref)` of whole responses."""
    log_ratio = (found.old - found.reference).sum(axis=1)
    return found.rewards - goal.beta_like(log_ratio) * log_ratio


def leave_one_out(rewards: Groups) -> Groups:
    """Each reward minus the mean of the others for the same prompt: `R_i − mean_{j≠i} R_j`."""
    k = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (k / (k - 1))


class LeaveOneOut(AbstractPolicyStep):
    """REINFORCE leave-one-out: the baseline is the mean reward of the other responses.

    Unbiased: the expected direction is the gradient of the objective for the given prompts.

    Kool, van Hoof, Welling. "Buy 4 REINFORCE samples, get a baseline for free!". 2019. Ahmadian et
    al. "Back to basics". ACL 2024, arXiv:2402.14740.

    Attributes:
        samples: responses per prompt, at least 2.
        steps: number of times a call draws responses and moves the policy.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    samples: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _at_least_two(self.samples)

    def init(self, goal, x, y):
        return self.update.init(y)

    def step(self, goal, x, y, state, batch, k):
        def one(carry, at):
            y, state = carry
            i, key = at
            found = drawn(goal, x, y, batch.prompts, key, self.samples)
            direction = jax.grad(self.loss)(y, goal, found)
            return self.update.step(direction, state, y, k * self.steps + i), None

        at = jnp.arange(self.steps, dtype=k.dtype), jax.random.split(batch.key, self.steps)
        (y, state), _ = jax.lax.scan(one, (y, state), at)
        return y, state

    def loss(self, y: PyTree, goal: Goal, found: Drawn) -> Scalar:
        """A surrogate loss whose gradient is the direction."""
        advantages = leave_one_out(found.groups(regularised(goal, found))).ravel()
        return -(advantages * goal.policy.logprob(y, found.responses)).mean()


class GRPO(AbstractPolicyStep):
    """Group-relative policy optimisation: clipped ratios, advantages within a group.

    The divergence is a penalty `β/2 log²(π/π_ref)` of whole responses, whose gradient on responses
    of the current policy is that of `β KL(π ‖ π_ref)`; the paper's estimator has that of
    `β KL(π_ref ‖ π)`.

    Shao et al. "DeepSeekMath". 2024, arXiv:2402.03300.

    Attributes:
        scale: subtract the mean of the group's rewards and divide by their standard deviation, as
            in the paper. This changes the weight of the reward against the divergence for each
            prompt. If False, subtract the mean of the others; then β keeps its meaning.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    samples: int = eqx.field(static=True, default=8)
    epochs: int = eqx.field(static=True, default=1)
    clip: ScalarLike = nonnegative(0.2)
    scale: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        _at_least_two(self.samples)

    def init(self, goal, x, y):
        return self.update.init(y)

    def step(self, goal, x, y, state, batch, k):
        found = drawn(goal, x, y, batch.prompts, batch.key, self.samples)
        return _epochs(self, jax.grad(self.loss), y, state, goal, found, k)

    def loss(self, y: PyTree, goal: Goal, found: Drawn) -> Scalar:
        rewards = found.groups(found.rewards)
        if self.scale:
            deviation = rewards.std(axis=1, keepdims=True)
            centred = rewards - rewards.mean(axis=1, keepdims=True)
            advantages = centred / (deviation + jnp.asarray(1e-4, deviation.dtype))
        else:
            advantages = leave_one_out(rewards)
        logp = goal.policy.token_logprobs(y, found.responses)
        gain = clipped(logp - found.old, advantages.reshape(-1, 1), self.clip)
        kept = jnp.where(found.responses.mask, gain, 0).sum(axis=1).mean()
        log_ratio = (logp - found.reference).sum(axis=1)
        return goal.beta_like(logp) / 2 * (log_ratio**2).mean() - kept


class SquaredAdvantage(AbstractPolicyStep):
    """Regress the change of log-probability on the advantage: `(log π − log π_old − A/c)²`.

    The exact solution of the regression is the mirror step `π ∝ π_old exp(A/c)`. Advantages are
    those of whole responses, including the divergence, minus the mean of the others in the group.

    Zhu et al. "Fine-tuning language models with advantage-induced policy alignment". 2023,
    arXiv:2306.02231.

    Attributes:
        constant: c.
        epochs: gradient steps on the same responses.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    samples: int = eqx.field(static=True, default=8)
    epochs: int = eqx.field(static=True, default=2)
    constant: ScalarLike = nonnegative(10.0)

    def __check_init__(self):
        _at_least_two(self.samples)

    def init(self, goal, x, y):
        return self.update.init(y)

    def step(self, goal, x, y, state, batch, k):
        found = drawn(goal, x, y, batch.prompts, batch.key, self.samples)
        return _epochs(self, jax.grad(self.loss), y, state, goal, found, k)

    def loss(self, y: PyTree, goal: Goal, found: Drawn) -> Scalar:
        advantages = leave_one_out(found.groups(regularised(goal, found))).ravel()
        target = advantages / jnp.asarray(self.constant, advantages.dtype)
        moved = goal.policy.logprob(y, found.responses) - found.old.sum(axis=1)
        return ((moved - target) ** 2).mean()


def clipped(log_ratio: PerToken, advantages: PerToken, clip: ScalarLike) -> PerToken:
    """`min(A ρ, A clip(ρ, 1 − c, 1 + c))` with `ρ = exp(log_ratio)`."""
    ratio, width = jnp.exp(log_ratio), jnp.asarray(clip, log_ratio.dtype)
    return jnp.minimum(advantages * ratio, advantages * jnp.clip(ratio, 1 - width, 1 + width))


def _epochs(step, slope, y, state, goal, found, k):
    """`step.epochs` moves on the same responses."""

    def one(carry, i):
        y, state = carry
        return step.update.step(slope(y, goal, found), state, y, k * step.epochs + i), None

    (y, state), _ = jax.lax.scan(one, (y, state), jnp.arange(step.epochs, dtype=k.dtype))
    return y, state


def _at_least_two(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"samples is {samples}; a baseline from the others needs at least 2.")


# --- tied to a goal --------------------------------------------------------------------------


class Fixed(eqx.Module):
    """The reference is always that of the goal."""

    def init(self, goal: Goal, y: PyTree) -> PyTree:
        return None

    def at(self, goal: Goal, state: PyTree, y: PyTree, k) -> tuple[PyTree, PyTree]:
        """The reference of call k, and the new state."""
        return goal.reference, state


class Moving(eqx.Module):
    """The reference is an earlier iterate of the policy.

    Attributes:
        every: number of calls between updates of the reference; 1 is a proximal step.
    """

    every: int = eqx.field(static=True, default=1)

    def init(self, goal, y):
        return trees.copy(y)

    def at(self, goal, state, y, k):
        reference = trees.where(k % self.every == 0, y, state)
        return reference, reference


class StepState(NamedTuple):
    k: Int[Array, ""]  # calls
    anchor: PyTree  # the reference, where it moves
    own: Any  # of the policy step


class LowerStep(eqx.Module):
    """A policy step on a goal, as `bl.Problem` takes it: `lower_step(x, y, memory, batch)`."""

    goal: Goal
    policy_step: AbstractPolicyStep
    anchor: Fixed | Moving = Fixed()

    def init(self, x: PyTree, y: PyTree) -> StepState:
        own = self.policy_step.init(self.goal, x, y)
        return StepState(jnp.zeros((), jnp.int32), self.anchor.init(self.goal, y), own)

    def __call__(self, x, y, state: StepState, batch: Prompts) -> tuple[PyTree, StepState]:
        reference, anchor = self.anchor.at(self.goal, state.anchor, y, state.k)
        goal = Goal(self.goal.policy, self.goal.reward, reference, self.goal.beta)
        y, own = self.policy_step.step(goal, x, y, state.own, batch, state.k)
        return y, StepState(state.k + 1, anchor, own)


class Hold(eqx.Module):
    """A lower step that does not change the policy, for phases in which only the reward moves."""

    def __call__(self, x, y, batch):
        return y
