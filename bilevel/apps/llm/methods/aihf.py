"""AIHF and IRL: learn a reward and its policy jointly.

`reward_learning` defines the problem. This module solves it, in a single loop or in rounds.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.align import AbstractAlignment, Aligned, Options, Start
from bilevel.apps.llm.methods.reward_learning import AbstractNegatives, problem
from bilevel.apps.llm.methods.task import Task, Weights, data
from bilevel.apps.llm.policies.policy import generate, size
from bilevel.apps.llm.policy_steps.policy_step import AbstractPolicyStep, Fixed, Hold, Moving
from bilevel.apps.llm.rewards import losses
from bilevel.apps.llm.rewards.losses import AbstractContrast
from bilevel.apps.llm.rewards.reward import Normalised, Reward
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.fields import nonnegative
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.selection import solve
from bilevel.typing import RandomKey
from bilevel.updates import AbstractUpdate, FromOptax, as_update


class Rounds(NamedTuple):
    """Alternating phases instead of the single loop: first the reward, then the policy, and again.

    Attributes:
        rounds: number of rounds.
        policy_steps: calls of the policy step per round; the reward takes `steps` of the run.
        stored: generate one response to every demonstration at the start of a round, and learn the
            reward on these pairs; otherwise every reward step samples new responses.
        replay: from the third round on, also learn on the pairs of earlier rounds, except the
            first.
        fresh: reset the reward to its initial parameters at the start of every round.
        temperature: sampling temperature of the stored responses; 1 keeps the hypergradient
            unbiased.
    """

    rounds: int
    policy_steps: int
    stored: bool = True
    replay: bool = True
    fresh: bool = False
    temperature: float = 1.0


class Finish(NamedTuple):
    """Policy steps on the final reward, after the single loop.

    The loop holds the policy to the demonstrators: no β brings it further, since the reward is
    `β log(π_E/π_ref)`. A smaller β in these steps does.

    Attributes:
        steps: calls of the policy step.
        beta: β of these calls.
        step: the policy step; that of the loop if `None`.
    """

    steps: int
    beta: ScalarLike
    step: AbstractPolicyStep | None = None


class AIHF(AbstractAlignment):
    """Learn a reward and its policy jointly, from demonstrations and preferences.

    By default this is a single loop: each step takes one policy step on the current reward (`step`
    sets its number of gradient steps) and one reward step. For small β, do not solve one level to
    the end before the other moves: full phases with a fixed reference contract only for β > 1,
    partial steps always contract.

    The reward settles at `β log(π_E/π_ref)`, so its step size should shrink with β, and its decay
    grow as 1/β². Step sizes that end at zero keep reward and policy from swinging around it.

    Attributes:
        step: the policy step.
        x_update: the update of the reward parameters.
        contrast, negatives, anchor, weights, decay, per_token: as in `problem`.
        normalise: number of reference responses whose reward mean and deviation normalise the
            reward for the policy step; 0 for no normalisation.
        rounds: alternating phases instead of the single loop.
        finish: policy steps on the final reward, with a β of their own.
    """

    step: AbstractPolicyStep
    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: FromOptax(optax.adam, 1e-2)
    )
    contrast: AbstractContrast = losses.Linear()
    negatives: AbstractNegatives | None = None
    anchor: Fixed | Moving = Fixed()
    weights: Weights | None = None
    decay: ScalarLike = nonnegative(0.0)
    per_token: bool = eqx.field(static=True, default=False)
    normalise: int = eqx.field(static=True, default=0)
    rounds: Rounds | None = None
    finish: Finish | None = None

    def __check_init__(self):
        if self.rounds is not None and self.finish is not None:
            raise ValueError(
                "rounds and finish are both given; every round ends with policy steps, so finish "
                "is for the single loop: give one of them."
            )

    def run(self, task, start, options):
        if start.reward is None:
            raise ValueError("the reward has no start: give align(..., reward=...).")
        policy_reward = _normalised_reward(task, self.normalise, options.key)
        settings = {
            "contrast": self.contrast,
            "negatives": self.negatives,
            "weights": self.weights,
            "decay": self.decay,
            "per_token": self.per_token,
            "policy_reward": policy_reward,
        }
        if self.rounds is not None:
            return self._in_rounds(task, start, options, settings)
        posed = problem(task, self.step, anchor=self.anchor, **settings)
        feed = self._data(task, options)
        result = run(posed, self.x_update, start, feed, options)
        found = Aligned(result.y, result.x, [result])
        if self.finish is None or not found.ended:
            return found
        then = eqx.tree_at(lambda t: t.beta, task, jnp.asarray(self.finish.beta))
        now = options.after(found.results, steps=self.finish.steps)
        step, begin = self.finish.step or self.step, Start(found.reward, found.policy)
        last = follow(then, step, begin, feed, now, policy_reward)
        return Aligned(last.y, last.x, [result, last])

    def _data(self, task, options, pairs=None):
        """The data, without a kind of feedback whose weight is zero."""
        if self.weights is not None:
            gone = [bool(jnp.asarray(weight) == 0) for weight in self.weights]
            task = eqx.tree_at(
                lambda t: (t.prompts, t.demonstrations, t.preferences),
                task,
                (
                    task.prompts_to_answer(),
                    None if gone[0] else task.demonstrations,
                    None if gone[1] else task.preferences,
                ),
                is_leaf=lambda leaf: leaf is None,
            )
        return data(task, batch_size=options.batch_size, prompts=options.prompts, pairs=pairs)

    def _in_rounds(self, task, start, options, settings) -> Aligned:
        plan, (x, y), results, stored = self.rounds, start, [], []
        assert plan is not None

        def reached(found: Result) -> Aligned:
            results.append(found)
            return Aligned(found.y, found.x, results)

        learn = problem(task, Hold(), **settings)
        for key in jax.random.split(options.key, plan.rounds):
            generation_key, one, two = jax.random.split(key, 3)
            pairs = None
            if plan.stored and task.demonstrations is not None:
                responses = generate(
                    task.policy,
                    y,
                    task.demonstrations.prompts,
                    generation_key,
                    temperature=plan.temperature,
                )
                stored.append((task.demonstrations._replace(reference=None), responses))
                earlier = stored[1:-1] if plan.replay else []
                pairs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), stored[-1], *earlier)
            begin = Start(start.reward if plan.fresh else x, y)
            feed = self._data(task, options, pairs)
            now = options.after(results, key=one)
            found = reached(run(learn, self.x_update, begin, feed, now))
            if not found.ended:
                return found
            x = found.reward
            anchored = task
            if isinstance(self.anchor, Moving):  # the policy of the last round
                anchored = eqx.tree_at(lambda t: t.reference, task, y)
            now = options.after(results, key=two, steps=plan.policy_steps)
            found = reached(
                follow(anchored, self.step, Start(x, y), feed, now, settings["policy_reward"])
            )
            if not found.ended:
                return found
            y = found.policy
        return Aligned(y, x, results)


def IRL(step: AbstractPolicyStep, **settings: Any) -> AIHF:
    """Inverse reinforcement learning: `AIHF` on demonstrations only."""
    return AIHF(step, weights=Weights(1.0, 0.0), **settings)


def run(
    posed: Problem, x_update: AbstractUpdate, start: Start, feed: Data, options: Options
) -> Result:
    """Solve a reward learning problem by TTSA: the reward learns slowly, the policy follows."""
    return solve(
        posed,
        TTSA(x_update),
        start.reward,
        start.policy,
        data=feed,
        metrics=dict(options.metrics),
        **options.settings(start),
    )


def follow(
    task: Task,
    step: AbstractPolicyStep,
    start: Start,
    feed: Data,
    options: Options,
    policy_reward: Reward | None = None,
) -> Result:
    """KL-regularised reinforcement learning on a fixed reward: only the policy moves."""
    posed = problem(task, step, policy_reward=policy_reward, weights=Weights(0.0, 0.0))
    posed = posed.replace(hypergradient=_nothing)
    return run(posed, as_update(0.0), start, feed, options)


def _nothing(x, y, batch):
    return trees.zeros_like(x)


def _normalised_reward(task: Task, responses: int, key: RandomKey) -> Reward | None:
    if not responses:
        return None
    if task.reward is None:
        raise ValueError("the task has no reward to learn: give Task(..., reward=...).")
    asked = task.prompts_to_answer()
    some = jax.tree.map(lambda leaf: leaf[jnp.arange(responses) % size(asked)], asked)
    said = generate(task.policy, task.reference, some, jax.random.fold_in(key, 0x5EE))
    return Normalised(task.reward, said)
