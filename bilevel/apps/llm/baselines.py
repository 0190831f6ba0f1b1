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
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm import losses
from bilevel.apps.llm.align import (
    AbstractAlignment,
    Aligned,
    Feedback,
    Options,
    Start,
    Task,
    Weights,
    by_counts,
    data,
    feedback,
    follow,
)
from bilevel.apps.llm.policy import (
    AbstractPolicy,
    Preferences,
    Responses,
    generate,
    log_ratio,
    referred,
)
from bilevel.apps.llm.policy_step import AbstractPolicyStep
from bilevel.apps.llm.reward import Reward, Shifted, moments
from bilevel.data import Data
from bilevel.driver import Result, solve
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.typing import Scalar
from bilevel.updates import AbstractUpdate, FromOptax, as_update


def _adam():
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
    posed = Problem(SingleLevel(loss), _square, hypergradient=_Slope(loss), lower_step=_idle)
    return solve(
        posed,
        TTSA(update),
        start,
        jnp.zeros(()),
        data=Data(feedback(task, options.batch_size, pairs)),
        steps=options.steps,
        key=options.key,
        metrics={name: metric(fn) for name, fn in options.metrics.items()},
        log_every=min(options.log_every, options.steps),
        keep=options.keep,
        **{"certify": False, **options.rest},
    )


def _of_policy(fn):
    """Arrays that `fn` binds as a `Partial` stay arguments of the compiled program."""
    return Partial(_at_policy, Partial(fn))


def _at_policy(fn, x, y):
    return fn(None, x)


def _at_reward(fn, policy, x, y):
    return fn(x, policy)


def _kept(task: Task, *, demonstrations=None, preferences=None) -> Task:
    """The task with only this feedback."""
    return eqx.tree_at(
        lambda t: (t.demonstrations, t.preferences),
        task,
        (demonstrations, preferences),
        is_leaf=lambda leaf: leaf is None,
    )


def _demonstrations(task: Task) -> Responses:
    if task.demonstrations is None:
        raise ValueError("the task has no demonstrations: give Task(..., demonstrations=...).")
    return task.demonstrations


def _preferences(task: Task) -> Preferences:
    if task.preferences is None:
        raise ValueError("the task has no preferences: give Task(..., preferences=...).")
    return task.preferences


def _referred(task: Task, pairs: Preferences, rows: int | None, free: bool = False) -> Preferences:
    if free:
        return Preferences(*(r._replace(reference=jnp.zeros(r.mask.shape[:1])) for r in pairs))
    return Preferences(*(referred(task.policy, task.reference, r, rows=rows) for r in pairs))


# --- demonstrations --------------------------------------------------------------------------


class SFT(AbstractAlignment):
    """Supervised fine-tuning: `−E log π(demonstration)`. At best π is the demonstrators'."""

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)

    def run(self, task, start, options):
        kept = _kept(task, demonstrations=_demonstrations(task))
        loss = _Likelihood(task.policy)
        found = minimise(loss, start.policy, self.update, kept, options, _of_policy)
        return Aligned(found.x, None, [found])


class _Likelihood(eqx.Module):
    policy: AbstractPolicy

    def __call__(self, x, batch):
        return -self.policy.logprob(x, batch.demonstrations).mean()


# --- a reward, then a policy -----------------------------------------------------------------


class RewardModel(AbstractAlignment):
    """Bradley and Terry's likelihood of preferences; the policy stays where it is.

    Attributes:
        decay: `(decay/2) ‖x‖²`.
        smoothing: share of labels taken to be the wrong way round.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    decay: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)

    def run(self, task, start, options):
        if task.reward is None or start.reward is None:
            raise ValueError(
                "there is no reward to learn: give Task(..., reward=...) and "
                "align(..., reward=...), its parameters at the start."
            )
        kept = _kept(task, preferences=_preferences(task))
        loss = _Judgement(task.reward, self.decay, self.smoothing)

        def metric(fn):
            return Partial(_at_reward, Partial(fn), start.policy)

        found = minimise(loss, start.reward, self.update, kept, options, metric)
        return Aligned(start.policy, found.x, [found])


class _Judgement(eqx.Module):
    reward: Reward
    decay: ScalarLike
    smoothing: ScalarLike

    def __call__(self, x, batch):
        chosen, rejected = (self.reward(x, rows) for rows in batch.preferences)
        square = trees.dot(x, x)
        ridge = jnp.asarray(self.decay, square.dtype) / 2 * square
        return losses.preference(chosen, rejected, self.smoothing) + ridge.astype(chosen.dtype)


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
    learner: RewardModel = RewardModel()
    normalise: int = eqx.field(static=True, default=0)

    def run(self, task, start, options):
        one, two, three = jax.random.split(options.key, 3)
        learned = self.learner.run(task, start, options._replace(key=one))
        x, shown = learned.reward, None
        if self.normalise and task.reward is not None:
            prompts = task.asked()
            some = jax.tree.map(lambda a: a[jnp.arange(self.normalise) % a.shape[0]], prompts)
            said = generate(task.policy, task.reference, some, three)
            shown = Shifted(task.reward, moments(task.reward, x, said))
        feed = data(task, batch_size=options.batch_size, prompts=options.prompts)
        then = options._replace(key=two, steps=self.policy_steps)
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

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    reference_free: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = _referred(task, _preferences(task), self.rows, self.reference_free)
        loss = _Direct(task.policy, task.beta, self.smoothing)
        kept = _kept(task, preferences=pairs)
        found = minimise(loss, start.policy, self.update, kept, options, _of_policy)
        return Aligned(found.x, None, [found])


class _Direct(eqx.Module):
    policy: AbstractPolicy
    beta: ScalarLike
    smoothing: ScalarLike

    def __call__(self, x, batch):
        chosen, rejected = (log_ratio(self.policy, x, rows) for rows in batch.preferences)
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
    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        kept = _kept(task, preferences=_referred(task, _preferences(task), self.rows))
        loss = _Identity(task.policy, self.tau, self.per_token)
        found = minimise(loss, start.policy, self.update, kept, options, _of_policy)
        return Aligned(found.x, None, [found])


class _Identity(eqx.Module):
    policy: AbstractPolicy
    tau: ScalarLike
    per_token: bool = eqx.field(static=True)

    def __call__(self, x, batch):
        chosen, rejected = (self._ratio(x, rows) for rows in batch.preferences)
        return losses.ipo(chosen, rejected, self.tau)

    def _ratio(self, x: PyTree, rows: Responses) -> Float[Array, " n"]:
        ratio = log_ratio(self.policy, x, rows)
        return ratio / rows.mask.sum(axis=1).astype(ratio.dtype) if self.per_token else ratio


# --- both, without a reward ------------------------------------------------------------------


class AIHFDPO(AbstractAlignment):
    """AIHF with the reward `β log(π/π_ref)`: SFT on demonstrations plus DPO on preferences.

    Attributes:
        weights: of the two parts; by counts when absent.
        smoothing, rows: as in `DPO`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    weights: Weights | None = None
    smoothing: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = _referred(task, _preferences(task), self.rows)
        kept = _kept(task, demonstrations=_demonstrations(task), preferences=pairs)
        weights = by_counts(task) if self.weights is None else self.weights
        loss = _Sum(_Likelihood(task.policy), _Direct(task.policy, task.beta, self.smoothing),
                    Weights(*map(jnp.asarray, weights)))  # fmt: skip
        found = minimise(loss, start.policy, self.update, kept, options, _of_policy)
        return Aligned(found.x, None, [found])


class _Sum(eqx.Module):
    """A loss of the demonstrations and one of the preferences."""

    demonstrations: Callable
    preferences: Callable
    weights: Weights

    def __call__(self, x, batch):
        found = self.demonstrations(x, batch), self.preferences(x, batch)
        w1, w2 = (jnp.asarray(w, f.dtype) for w, f in zip(self.weights, found, strict=True))
        return w1 * found[0] + w2 * found[1]


# --- against itself --------------------------------------------------------------------------


class SPIN(AbstractAlignment):
    """Self-play: tell demonstrations from what the policy of the last round said, and again.

    A round generates one response to every demonstration and makes the run's `steps` updates. A
    round solved to the end multiplies the log error by `1 − 1/strength`: below ½ that diverges, so
    the usual 0.1 must stop far short of it.

    Attributes:
        strength: λ.
        rounds: how many.
        replay: learn on the last round's responses too.
        rows: as in `DPO`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    strength: ScalarLike = eqx.field(converter=jnp.asarray, default=0.1)
    rounds: int = eqx.field(static=True, default=1)
    replay: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        loss = _SelfPlay(task.policy, self.strength)
        return _play(self, loss, _kept(task, demonstrations=_demonstrations(task)), start, options)


class SelfPlayAIHF(AbstractAlignment):
    """Self-play on demonstrations plus DPO on preferences, relative to the last round's policy.

    Attributes:
        weights: of the two parts; by counts when absent.
        strength: λ of both parts; the task's β when absent.
        rounds, replay, rows: as in `SPIN`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=_adam)
    weights: Weights | None = None
    strength: ScalarLike | None = None
    rounds: int = eqx.field(static=True, default=1)
    replay: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        strength = task.beta if self.strength is None else jnp.asarray(self.strength)
        weights = by_counts(task) if self.weights is None else self.weights
        parts = _SelfPlay(task.policy, strength), _Direct(task.policy, strength, jnp.asarray(0.0))
        loss = _Sum(*parts, Weights(*map(jnp.asarray, weights)))
        both = _kept(task, demonstrations=_demonstrations(task), preferences=_preferences(task))
        return _play(self, loss, both, start, options)


class _SelfPlay(eqx.Module):
    policy: AbstractPolicy
    strength: ScalarLike

    def __call__(self, x, batch):
        demonstrated, own = (log_ratio(self.policy, x, rows) for rows in batch.pairs)
        return losses.spin(demonstrated, own, self.strength)


def _play(how: SPIN | SelfPlayAIHF, loss, task: Task, start: Start, options: Options) -> Aligned:
    """Rounds of generating and telling apart, each against the policy that it starts from."""
    y, results, before = start.policy, [], None
    shown = _demonstrations(task)
    for key in jax.random.split(options.key, how.rounds):
        saying, training = jax.random.split(key)
        said = generate(task.policy, y, shown.prompts, saying)
        pairs = shown._replace(reference=None), said
        both = pairs if before is None else jax.tree.map(_joined, pairs, before)
        before = pairs if how.replay else None
        opponent = eqx.tree_at(lambda t: t.reference, task, y)
        told, own = (referred(task.policy, y, rows, rows=how.rows) for rows in both)
        judged = None
        if task.preferences is not None:
            judged = _referred(opponent, task.preferences, how.rows)
        found = minimise(
            loss,
            y,
            how.update,
            _kept(task, preferences=judged),
            options._replace(key=training),
            _of_policy,
            (told, own),
        )
        y, results = found.x, [*results, found]
    return Aligned(y, None, results)


def _joined(a, b):
    return jnp.concatenate([a, b])
