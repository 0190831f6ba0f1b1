"""What bilevel alignment is compared with: single-level losses, with its interface and data.

Each minimises a loss of `losses` in the parameters of the policy (of the reward, in `RewardModel`)
through the same driver, so that checkpoints, metrics and meshes work alike. Log-probabilities under
a reference are computed once, before.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm import losses
from bilevel.apps.llm.align import AbstractAlignment, Aligned, Options, Start, follow
from bilevel.apps.llm.policy import (
    AbstractPolicy,
    Preferences,
    Responses,
    generate,
    log_ratios,
    referred,
)
from bilevel.apps.llm.policy_step import AbstractPolicyStep
from bilevel.apps.llm.reward import Reward, Shifted, judged, moments
from bilevel.apps.llm.task import Feedback, Task, Weights, by_counts, data, feedback
from bilevel.data import Data
from bilevel.driver import Result, solve
from bilevel.driver.log import as_metric
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.typing import Scalar
from bilevel.updates import AbstractUpdate, FromOptax, as_update


def adam():
    return FromOptax(optax.adam, 1e-3)


# --- a single level, for the driver of two ---------------------------------------------------


class SingleLevel(eqx.Module):
    """`loss(x, batch)` as an upper loss; y is a single idle number."""

    loss: Callable

    def __call__(self, x, y, batch):
        return self.loss(x, batch)


class _Slope(eqx.Module):
    loss: Callable

    def __call__(self, x, y, batch):
        return jax.grad(self.loss)(x, batch.upper)


def _idle(x, y, batch):
    return y


def _square(x, y, batch):
    return y * y / 2


def single(loss: Callable[[PyTree, Feedback], Scalar]) -> Problem:
    """`loss(x, feedback)` as a bilevel problem: TTSA on it moves x along the gradient."""
    return Problem(SingleLevel(loss), _square, hypergradient=_Slope(loss), lower_step=_idle)


def minimise(
    loss: Callable[[PyTree, Feedback], Scalar],
    start: PyTree,
    update: AbstractUpdate,
    task: Task,
    options: Options,
    metric: Callable[[Callable], Callable],
    pairs: tuple[Responses, Responses] | None = None,
) -> Result:
    """Minimise `loss(x, feedback)` over the feedback of a task.

    Args:
        metric: turns a function of the reward's and the policy's parameters into one of (x, y).
        pairs: demonstrations and what was said instead.
    """
    return solve(
        single(loss),
        TTSA(update),
        start,
        jnp.zeros(()),
        data=Data(feedback(task, options.batch_size, pairs)),
        metrics={name: metric(fn) for name, fn in options.metrics.items()},
        **options.settings(start),
    )


def of_policy(fn):
    """Arrays that `fn` binds as a `Partial` stay arguments of the compiled program."""
    return Partial(_at_policy, as_metric(fn))


def _at_policy(fn, x, y):
    return fn(None, x)


def _at_reward(fn, policy, x, y):
    return fn(x, policy)


def kept_only(task: Task, *, demonstrations=None, preferences=None) -> Task:
    """The task with only this feedback."""
    return eqx.tree_at(
        lambda t: (t.demonstrations, t.preferences),
        task,
        (demonstrations, preferences),
        is_leaf=lambda leaf: leaf is None,
    )


def demonstrations_of(task: Task) -> Responses:
    if task.demonstrations is None:
        raise ValueError("the task has no demonstrations: give Task(..., demonstrations=...).")
    return task.demonstrations


def preferences_of(task: Task) -> Preferences:
    if task.preferences is None:
        raise ValueError("the task has no preferences: give Task(..., preferences=...).")
    return task.preferences


def pairs_referred(
    task: Task, pairs: Preferences, rows: int | None, free: bool = False
) -> Preferences:
    if free:
        return Preferences(*(r._replace(reference=jnp.zeros(r.mask.shape[:1])) for r in pairs))
    return Preferences(*(referred(task.policy, task.reference, r, rows=rows) for r in pairs))


# --- demonstrations --------------------------------------------------------------------------


class SFT(AbstractAlignment):
    """Supervised fine-tuning: `−E log π(demonstration)`. At best π is the demonstrators'.

    The mean over demonstrations of the sum over their tokens.

    Attributes:
        per_row: demonstrations a row, on average, where they are packed (`packing.packed`); the
            loss is then the mean over rows divided by it, which has the same expectation.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    per_row: ScalarLike = eqx.field(converter=jnp.asarray, default=1.0)

    def run(self, task, start, options):
        kept = kept_only(task, demonstrations=demonstrations_of(task))
        loss = _Likelihood(task.policy, self.per_row)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class _Likelihood(eqx.Module):
    policy: AbstractPolicy
    per_row: ScalarLike = eqx.field(converter=jnp.asarray, default=1.0)

    def __call__(self, x, batch):
        logp = self.policy.logprob(x, batch.demonstrations)
        return -logp.mean() / jnp.asarray(self.per_row, logp.dtype)


# --- a reward, then a policy -----------------------------------------------------------------


class RewardModel(AbstractAlignment):
    """Bradley and Terry's likelihood of preferences; the policy stays where it is.

    Attributes:
        decay: `(decay/2) ‖x‖²`.
        smoothing: share of labels taken to be the wrong way round.
        per_token: a likelihood after every token from where two responses part, in place of one of
            whole responses; the reward needs a method `tokens`, as `reward.Head` has.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    decay: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
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
            return Partial(_at_reward, as_metric(fn), start.policy)

        found = minimise(loss, start.reward, self.update, kept, options, metric)
        return Aligned(start.policy, found.x, [found])


class _Judgement(eqx.Module):
    reward: Reward
    decay: ScalarLike
    smoothing: ScalarLike
    per_token: bool = eqx.field(static=True)

    def __call__(self, x, batch):
        how = {"per_token": self.per_token, "smoothing": self.smoothing}
        loss, square = judged(self.reward, x, batch.preferences, **how), trees.dot(x, x)
        return loss + (jnp.asarray(self.decay, square.dtype) / 2 * square).astype(loss.dtype)


class RLHF(AbstractAlignment):
    """The pipeline in stages: a reward from preferences, then KL-regularised learning of it.

    Start from SFT with `align(..., policy=sft)`, and with the task's reference the same, for the
    usual three stages. (The reward of preferences is then no longer relative to the model that the
    demonstrations' optimum is relative to: it counts them twice.)

    Attributes:
        step: how the policy moves.
        policy_steps: calls of it; the reward takes the run's `steps`.
        learner: how the reward is learned.
        normalise: how many responses of the reference give the reward its mean and deviation in the
            second stage; 0 for the reward as it is.
    """

    step: AbstractPolicyStep
    policy_steps: int = eqx.field(static=True)
    learner: RewardModel = eqx.field(default_factory=RewardModel)  # importing makes no array
    normalise: int = eqx.field(static=True, default=0)

    def run(self, task, start, options):
        one, two, three = jax.random.split(options.key, 3)
        learned = self.learner.run(task, start, options._replace(key=one))
        if not learned.ended:
            return learned
        x, shown = learned.reward, None
        if self.normalise and task.reward is not None:
            prompts = task.asked()
            some = jax.tree.map(lambda a: a[jnp.arange(self.normalise) % a.shape[0]], prompts)
            said = generate(task.policy, task.reference, some, three)
            shown = Shifted(task.reward, moments(task.reward, x, said))
        feed = data(task, batch_size=options.batch_size, prompts=options.prompts)
        then = options._replace(key=two, steps=self.policy_steps, phase=2)
        found = follow(task, self.step, Start(x, start.policy), feed, then, shown)
        return Aligned(found.y, x, [*learned.results, found])


# --- preferences, without a reward -----------------------------------------------------------


class DPO(AbstractAlignment):
    """Direct preference optimisation with the task's β: at best the policy that RLHF aims at.

    Attributes:
        smoothing: share of labels taken to be the wrong way round (conservative DPO).
        reference_free: leave the reference out of the ratio.
        rows: at a time, for the reference's log-probabilities; all when absent.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    reference_free: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = pairs_referred(task, preferences_of(task), self.rows, self.reference_free)
        loss = Direct(task.policy, task.beta, self.smoothing)
        kept = kept_only(task, preferences=pairs)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class Direct(eqx.Module):
    """DPO's loss of preferences that carry their reference."""

    policy: AbstractPolicy
    beta: ScalarLike
    smoothing: ScalarLike

    def __call__(self, x, batch):
        chosen, rejected = log_ratios(self.policy, x, batch.preferences)
        return losses.dpo(chosen, rejected, self.beta, self.smoothing)


class IPO(AbstractAlignment):
    """Identity preference optimisation.

    With pairs from the reference, at best `π ∝ π_ref exp(p(a beats the reference)/τ)`.

    Attributes:
        tau: τ.
        per_token: divide each ratio by the response's length, as several libraries do; the sum is
            the paper's.
        rows: as in `DPO`.
    """

    tau: ScalarLike = eqx.field(converter=jnp.asarray)
    per_token: bool = eqx.field(static=True)
    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        kept = kept_only(task, preferences=pairs_referred(task, preferences_of(task), self.rows))
        loss = _Identity(task.policy, self.tau, self.per_token)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class _Identity(eqx.Module):
    policy: AbstractPolicy
    tau: ScalarLike
    per_token: bool = eqx.field(static=True)

    def __call__(self, x, batch):
        chosen, rejected = log_ratios(self.policy, x, batch.preferences)
        if self.per_token:
            lengths = (rows.mask.sum(axis=1).astype(chosen.dtype) for rows in batch.preferences)
            chosen, rejected = (r / n for r, n in zip((chosen, rejected), lengths, strict=True))
        return losses.ipo(chosen, rejected, self.tau)


# --- both, without a reward ------------------------------------------------------------------


class AIHFDPO(AbstractAlignment):
    """AIHF with the reward `β log(π/π_ref)`: SFT on demonstrations plus DPO on preferences.

    Attributes:
        weights: of the two parts; by counts when absent.
        smoothing, rows: as in `DPO`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    weights: Weights | None = None
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = pairs_referred(task, preferences_of(task), self.rows)
        kept = kept_only(task, demonstrations=demonstrations_of(task), preferences=pairs)
        weights = by_counts(task) if self.weights is None else self.weights
        loss = Sum(_Likelihood(task.policy), Direct(task.policy, task.beta, self.smoothing),
                    Weights(*map(jnp.asarray, weights)))  # fmt: skip
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class Sum(eqx.Module):
    """A loss of the demonstrations and one of the preferences."""

    demonstrations: Callable
    preferences: Callable
    weights: Weights

    def __call__(self, x, batch):
        found = self.demonstrations(x, batch), self.preferences(x, batch)
        w1, w2 = (jnp.asarray(w, f.dtype) for w, f in zip(self.weights, found, strict=True))
        return w1 * found[0] + w2 * found[1]
