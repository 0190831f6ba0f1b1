"""RLHF: a reward model from preferences, then a policy step against it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.aihf import follow
from bilevel.apps.llm.methods.align import AbstractAlignment, Aligned, Start
from bilevel.apps.llm.methods.single_level import (
    adam,
    at_reward,
    kept_only,
    minimise,
    preferences_of,
)
from bilevel.apps.llm.methods.task import data
from bilevel.apps.llm.policies.policy import generate
from bilevel.apps.llm.policy_steps.policy_step import AbstractPolicyStep
from bilevel.apps.llm.rewards.reward import Reward, Shifted, judged, moments
from bilevel.driver.log import as_metric
from bilevel.fields import fraction, nonnegative
from bilevel.updates import AbstractUpdate, as_update


class RewardModel(AbstractAlignment):
    """Bradley-Terry likelihood of preferences; the policy is not changed.

    Attributes:
        decay: `(decay/2) ‖x‖²`.
        smoothing: assumed fraction of flipped labels.
        per_token: a likelihood at every token from the first difference of the two responses,
            instead of one for whole responses; the reward needs a method `tokens`, as
            `reward.Head` has.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    decay: ScalarLike = nonnegative(0.0)
    smoothing: ScalarLike = fraction(0.0)
    per_token: bool = eqx.field(static=True, default=False)

    def run(self, task, start, options):
        if task.reward is None or start.reward is None:
            raise ValueError(
                "there is no reward to learn: give Task(..., reward=...) and "
                "align(..., reward=...), its parameters at the start."
            )
        kept = kept_only(task, preferences=preferences_of(task))
        loss = _Judgement(task.reward, self.decay, self.smoothing, self.per_token)

        def metric(fn):
            return Partial(at_reward, as_metric(fn), start.policy)

        found = minimise(loss, start.reward, self.update, kept, options, metric)
        return Aligned(start.policy, found.x, [found])


class _Judgement(eqx.Module):
    reward: Reward
    decay: ScalarLike
    smoothing: ScalarLike
    per_token: bool = eqx.field(static=True)

    def __call__(self, x, batch):
        options_ = {"per_token": self.per_token, "smoothing": self.smoothing}
        loss, square = judged(self.reward, x, batch.preferences, **options_), trees.dot(x, x)
        return loss + (jnp.asarray(self.decay, square.dtype) / 2 * square).astype(loss.dtype)


class RLHF(AbstractAlignment):
    """RLHF in two stages: a reward from preferences, then KL-regularised RL on this reward.

    For the usual three stages, start from SFT with `align(..., policy=sft)` and use the same
    parameters as the reference of the task. (The demonstrations then count twice, because the
    reference of the preference stage has already been trained on them.)

    Attributes:
        step: the policy step.
        policy_steps: number of its calls; the reward takes `steps` of the run.
        learner: the method that learns the reward.
        normalise: number of reference responses whose reward mean and deviation normalise the
            reward in the second stage; 0 for no normalisation.
    """

    step: AbstractPolicyStep
    policy_steps: int = eqx.field(static=True)
    learner: RewardModel = eqx.field(default_factory=RewardModel)  # no arrays at import time
    normalise: int = eqx.field(static=True, default=0)

    def run(self, task, start, options):
        one, two, three = jax.random.split(options.key, 3)
        learned = self.learner.run(task, start, options._replace(key=one))
        if not learned.ended:
            return learned
        x, policy_reward = learned.reward, None
        if self.normalise and task.reward is not None:
            prompts = task.prompts_to_answer()
            some = jax.tree.map(lambda a: a[jnp.arange(self.normalise) % a.shape[0]], prompts)
            responses = generate(task.policy, task.reference, some, three)
            policy_reward = Shifted(task.reward, moments(task.reward, x, responses))
        feed = data(task, batch_size=options.batch_size, prompts=options.prompts)
        then = options.after(learned.results, key=two, steps=self.policy_steps)
        found = follow(task, self.step, Start(x, start.policy), feed, then, policy_reward)
        return Aligned(found.y, x, [*learned.results, found])
