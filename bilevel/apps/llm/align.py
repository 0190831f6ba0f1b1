"""Alignment as a bilevel problem: learn the reward whose best policy explains the feedback.

    minimise over x   w1 · −E log π_x(demonstration) + w2 · −E log σ(r_x(chosen) − r_x(rejected))
    where             π_x maximises E r_x − β KL(π ‖ π_ref)

The upper gradient needs no Hessian: the first part's is `(E_(π_x) ∇r − E_demonstrations ∇r)/β`. So
`problem` declares it as the hypergradient and a policy step as the lower step, and TTSA makes of
the two the single loop: a few policy steps, one reward step, again.

With demonstrations alone this is inverse reinforcement learning (IRL), with both AIHF, with
preferences alone RLHF in one loop. `align` runs these and the baselines of `baselines` alike.

References: Zeng, Li, Garcia, Hong. "Maximum-likelihood inverse reinforcement learning with
finite-time guarantees". NeurIPS 2022, arXiv:2210.01808. Li, Zeng, Liao, Li, Kang, Garcia, Hong.
"Getting more juice out of the SFT data: reward learning from human demonstration improves SFT for
LLM alignment". NeurIPS 2024, arXiv:2405.17888. Li, Zeng, Garcia, Hong and others. "Joint reward and
policy learning with demonstrations and human feedback improves alignment". 2024, arXiv:2406.06874.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm import losses
from bilevel.apps.llm.losses import AbstractContrast
from bilevel.apps.llm.policy import (
    AbstractPolicy,
    Preferences,
    Responses,
    generate,
    repeated,
    size,
    stopped,
)
from bilevel.apps.llm.policy_step import (
    AbstractPolicyStep,
    Fixed,
    Goal,
    Hold,
    LowerStep,
    Moving,
    Prompts,
)
from bilevel.apps.llm.reward import Normalised, Reward
from bilevel.apps.llm.sources import Together
from bilevel.apps.llm.tiny import Enumerated
from bilevel.data import Data, Sampler
from bilevel.data.reading import as_source
from bilevel.driver import Best, Result, solve
from bilevel.methods import TTSA
from bilevel.problem import Batch, Problem
from bilevel.typing import RandomKey, Scalar
from bilevel.updates import AbstractUpdate, FromOptax, as_update


class Task(eqx.Module):
    """What is to be aligned, with what.

    Attributes:
        policy: the model; its parameters are y.
        reference: parameters of π_ref.
        beta: weight of the divergence from it.
        reward: `reward(x, responses)`, for those that learn one.
        prompts: what the policy is to answer while it learns; those of the demonstrations when
            absent, else of the preferences.
    """

    policy: AbstractPolicy
    reference: PyTree
    beta: ScalarLike = eqx.field(converter=jnp.asarray)
    reward: Reward | None = None
    demonstrations: Responses | None = None
    preferences: Preferences | None = None
    prompts: PyTree = None

    def asked(self) -> PyTree:
        """The prompts to answer.

        Raises:
            ValueError: there are none.
        """
        if self.prompts is not None:
            return self.prompts
        if self.demonstrations is not None:
            return self.demonstrations.prompts
        if self.preferences is not None:
            return self.preferences.chosen.prompts
        raise ValueError("the task has no feedback: give demonstrations, preferences or both.")


class Feedback(NamedTuple):
    """The upper batch."""

    demonstrations: Responses | None = None
    preferences: Preferences | None = None
    pairs: tuple[Responses, Responses] | None = None  # demonstrations, what was said instead


class Weights(NamedTuple):
    """What the mean losses of the two kinds of feedback count."""

    demonstrations: ScalarLike
    preferences: ScalarLike


def by_counts(task: Task) -> Weights:
    """In proportion to how many there are, so that every datum counts alike; their sum is 1.

    With both losses likelihoods of one reward, this is the maximum-likelihood estimator.
    """
    counts = [0 if rows is None else size(rows) for rows in (task.demonstrations, task.preferences)]
    if not sum(counts):
        raise ValueError("the task has no feedback: give demonstrations, preferences or both.")
    return Weights(*(count / sum(counts) for count in counts))


# --- what the policy says instead of a demonstration -----------------------------------------


Own = Callable[[PyTree], tuple[Float[Array, "n k"], Float[Array, "n k"]]]


class AbstractNegatives(eqx.Module):
    """Rewards of the current policy's responses to the prompts of demonstrations."""

    @abc.abstractmethod
    def __call__(
        self, policy: AbstractPolicy, reward: Reward, y: PyTree, prompts: PyTree, key: RandomKey
    ) -> Own:
        """`x -> (rewards, weights)`; a row of weights sums to 1. y is out of derivatives' reach."""


class Enumerate(AbstractNegatives):
    """Every response, weighed by its probability: for `tiny.Enumerated`."""

    def __call__(self, policy, reward, y, prompts, key):
        if not isinstance(policy, Enumerated):
            raise TypeError(
                f"{type(policy).__name__} cannot list its responses; draw them: Draw(samples=1)."
            )
        weights = jnp.exp(stopped(policy.log_table(y)))[prompts]
        return lambda x: (policy.reward_table(reward, x)[prompts], weights)


class Draw(AbstractNegatives):
    """A few responses of the current policy.

    Attributes:
        temperature: 1 makes the hypergradient unbiased; colder ones are a heuristic with another
            fixed point.
    """

    samples: int = eqx.field(static=True, default=1)
    temperature: float = eqx.field(static=True, default=1.0)

    def __call__(self, policy, reward, y, prompts, key):
        asked = repeated(prompts, self.samples)
        said = stopped(policy.sample(y, asked, key, temperature=self.temperature))

        def rewards(x):
            found = reward(x, said).reshape(-1, self.samples)
            return found, jnp.full_like(found, 1 / self.samples)

        return rewards


def _stored(reward: Reward, said: Responses) -> Own:
    """Of responses made before, one to a demonstration."""

    def rewards(x):
        found = reward(x, said)[:, None]
        return found, jnp.ones_like(found)

    return rewards


# --- the problem -----------------------------------------------------------------------------


class Criterion(eqx.Module):
    """What the upper level is made of."""

    goal: Goal
    contrast: AbstractContrast
    negatives: AbstractNegatives
    weights: Weights
    decay: ScalarLike

    def upper(self, x: PyTree, y: PyTree, batch: Feedback) -> Scalar:
        """`w1 · −E log π_y(demonstration) + w2 · preference loss + (decay/2) ‖x‖²`."""
        total = self._common(x, batch)
        shown = batch.demonstrations if batch.pairs is None else batch.pairs[0]
        if shown is not None:
            fit = -self.goal.policy.logprob(y, shown).mean()
            total = total + _like(self.weights.demonstrations, total) * fit.astype(total.dtype)
        return total

    def hypergradient(self, x: PyTree, y: PyTree, batch: Batch) -> PyTree:
        """The gradient in x of the contrast, in place of that of the demonstrations' part."""
        feedback, prompts = batch.upper, batch.lower
        policy, reward = self.goal.policy, self.goal.reward
        if feedback.pairs is not None:
            shown, said = feedback.pairs
            own = _stored(reward, said)
        elif feedback.demonstrations is not None:
            shown = feedback.demonstrations
            # Another draw than the policy's step was made with.
            key = jax.random.fold_in(prompts.key, 0xA11)
            own = self.negatives(policy, reward, y, shown.prompts, key)
        else:
            return jax.grad(self._common)(x, feedback)

        def loss(x):
            total, demonstrated = self._common(x, feedback), reward(x, shown)
            found = self.contrast(demonstrated, *own(x), self.goal.beta)
            return total + _like(self.weights.demonstrations, total) * found.astype(total.dtype)

        return jax.grad(loss)(x)

    def _common(self, x: PyTree, batch: Feedback) -> Scalar:
        """What depends on x alone."""
        total = _like(self.decay, trees.dot(x, x)) / 2 * trees.dot(x, x)
        if batch.preferences is None:
            return total
        better, worse = (self.goal.reward(x, rows) for rows in batch.preferences)
        found = losses.preference(better, worse)
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
    """`β KL(π_y ‖ π_ref) − E r`, exact for an enumerated policy, else on responses drawn from it.

    On drawn responses every factor `exp(log π − stop(log π))` is 1 and carries the derivative of
    the distribution: value and derivatives of any order are unbiased.
    """

    goal: Goal

    def __call__(self, x: PyTree, y: PyTree, batch: Prompts) -> Scalar:
        policy, reward, beta = self.goal.policy, self.goal.reward, self.goal.beta
        if isinstance(policy, Enumerated):
            log_p = policy.log_table(y)
            rewards = policy.reward_table(reward, x).astype(log_p.dtype)
            log_ratio = log_p - policy.log_table(self.goal.reference)
            cost = _like(beta, log_p) * log_ratio - rewards
            return (jnp.exp(log_p) * cost).sum(axis=-1).mean()
        said = stopped(policy.sample(y, batch.prompts, batch.key))
        logp = policy.logprob(y, said)
        log_ratio = logp - policy.logprob(self.goal.reference, said).astype(logp.dtype)
        cost = _like(beta, logp) * log_ratio - reward(x, said).astype(logp.dtype)
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
    shown: Reward | None = None,
) -> Problem:
    """The bilevel problem of reward learning, with its hypergradient and its lower step.

    Upper batches are `Feedback`, lower ones `Prompts`; `data` makes both.

    Args:
        step: how the policy moves, or `Hold()`.
        contrast: `losses.Linear()` when absent.
        negatives: `Enumerate()` when absent and the policy can, else `Draw()`.
        anchor: the reference of the policy's step: `Fixed()` when absent, or `Moving(every)`.
        weights: by counts when absent.
        decay: of the reward's parameters, `(decay/2) ‖x‖²`.
        shown: the reward as the policy's step sees it, such as `reward.Normalised(...)`.
    """
    if task.reward is None:
        raise ValueError("the task has no reward to learn: give Task(..., reward=...).")
    goal = Goal(task.policy, task.reward, task.reference, task.beta)
    seen = goal if shown is None else Goal(task.policy, shown, task.reference, task.beta)
    listed = isinstance(task.policy, Enumerated)
    criterion = Criterion(
        goal,
        losses.Linear() if contrast is None else contrast,
        (Enumerate() if listed else Draw()) if negatives is None else negatives,
        Weights(*map(jnp.asarray, by_counts(task) if weights is None else weights)),
        jnp.asarray(decay),
    )
    moves = step if isinstance(step, Hold) else LowerStep(seen, step, anchor or Fixed())
    return Problem(
        Upper(criterion), Lower(seen), hypergradient=Hypergradient(criterion), lower_step=moves
    )


def data(
    task: Task,
    *,
    batch_size: int | None = None,
    prompts: int | None = None,
    pairs: tuple[Responses, Responses] | None = None,
) -> Data:
    """Feedback for the upper level, prompts and randomness for the lower one.

    Args:
        batch_size: rows of each kind of feedback in a batch; all when absent.
        prompts: prompts in a lower batch; all when absent.
        pairs: demonstrations with what was said instead, in place of the task's demonstrations.
    """
    asked = _rows("prompts", task.asked(), prompts)
    randomly = Together(Prompts(asked, Sampler(_itself)))  # pyright: ignore
    return Data(feedback(task, batch_size, pairs), randomly)


def feedback(
    task: Task, batch_size: int | None = None, pairs: tuple[Responses, Responses] | None = None
) -> Together:
    """The upper half of `data` alone."""
    shown = None if pairs is not None else task.demonstrations
    kinds: dict[str, Any] = {
        "demonstrations": shown,
        "preferences": task.preferences,
        "pairs": pairs,
    }
    sources: dict[str, Any] = {name: _rows(name, p, batch_size) for name, p in kinds.items()}
    return Together(Feedback(**sources))


def _rows(name: str, rows: PyTree, batch_size: int | None):
    if rows is None:
        return None
    n = size(rows)
    few = None if batch_size is None or batch_size >= n else batch_size
    return as_source(name, rows, few, "epochs")


def _itself(key):
    return key


# --- one interface ---------------------------------------------------------------------------


class Aligned(NamedTuple):
    """What came out."""

    policy: PyTree  # parameters
    reward: PyTree | None  # parameters, of those that learn a reward
    results: list[Result]  # of every phase, in order

    @property
    def history(self) -> dict[str, Any]:
        """Of the last phase."""
        return self.results[-1].history


class AbstractAlignment(eqx.Module):
    """A way to align: bilevel or a baseline, with the same data."""

    @abc.abstractmethod
    def run(self, task: Task, start: "Start", options: "Options") -> Aligned:
        """Align the task's policy."""


class Start(NamedTuple):
    """Where to begin."""

    reward: PyTree | None
    policy: PyTree


class Options(NamedTuple):
    """How long and how watched; the last are those of `bl.solve`."""

    steps: int
    key: RandomKey
    batch_size: int | None
    prompts: int | None
    metrics: Mapping[str, Callable]  # of (reward, policy) parameters
    log_every: int
    keep: str | Best
    rest: Mapping[str, Any]


def align(
    task: Task,
    how: AbstractAlignment,
    *,
    steps: int,
    reward: PyTree = None,
    policy: PyTree = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    prompts: int | None = None,
    metrics: Mapping[str, Callable] | None = None,
    log_every: int = 100,
    keep: str | Best = "last",
    **options: Any,
) -> Aligned:
    """Align a policy with demonstrations, preferences or both.

    Args:
        how: `AIHF(...)`, `IRL(...)`, or one of `baselines`.
        steps: updates of the upper variable: of the reward, or of the policy in a baseline.
        reward, policy: parameters to start from; a policy absent starts as the reference.
        batch_size, prompts: rows of feedback, and prompts to answer, a step; all when absent.
        metrics: names to functions of the reward's and the policy's parameters (the first `None`
            in a baseline without a reward), evaluated every `log_every` steps.
        keep: the "last" iterate, or the best by a metric.
        options: handed to `bl.solve`: `checkpoint`, `progress`, ...
    """
    policy = task.reference if policy is None else policy
    key = jax.random.key(0) if key is None else key
    chosen = Options(steps, key, batch_size, prompts, metrics or {}, log_every, keep, options)
    return how.run(task, Start(reward, policy), chosen)


class Rounds(NamedTuple):
    """Whole phases in place of the single loop: first the reward, then the policy, and again.

    Attributes:
        rounds: how many.
        policy_steps: calls of the policy step in each; the reward takes the run's `steps`.
        stored: generate one response to every demonstration at the start of a round, and learn the
            reward on these pairs; otherwise responses are made afresh in every reward step.
        replay: from the third round on, learn on the pairs of earlier rounds too, but the first.
        fresh: begin every round with the reward's start.
        temperature: of the stored responses; 1 keeps the hypergradient unbiased.
    """

    rounds: int
    policy_steps: int
    stored: bool = True
    replay: bool = True
    fresh: bool = False
    temperature: float = 1.0


class AIHF(AbstractAlignment):
    """Learn a reward and its policy together, from demonstrations and preferences.

    By default a single loop: each step takes one step of the policy on the current reward (`step`
    says how many gradient steps that is) and one of the reward. With small β neither level may be
    solved to the end before the other moves: whole phases with a fixed reference contract only for
    β > 1, partial steps always do.

    Attributes:
        step: how the policy moves.
        x_update: how the reward moves.
        contrast, negatives, anchor, weights, decay: as in `problem`.
        normalise: how many responses of the reference give the mean and deviation by which the
            policy's step sees the reward; 0 for the reward as it is.
        rounds: whole phases in place of the single loop.
    """

    step: AbstractPolicyStep
    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: FromOptax(optax.adam, 1e-2)
    )
    contrast: AbstractContrast = losses.Linear()
    negatives: AbstractNegatives | None = None
    anchor: Fixed | Moving = Fixed()
    weights: Weights | None = None
    decay: ScalarLike = eqx.field(converter=jnp.asarray, default=0.0)
    normalise: int = eqx.field(static=True, default=0)
    rounds: Rounds | None = None

    def run(self, task, start, options):
        if start.reward is None:
            raise ValueError("the reward has no start: give align(..., reward=...).")
        seen = _seen(task, self.normalise, options.key)
        settings = {
            "contrast": self.contrast,
            "negatives": self.negatives,
            "weights": self.weights,
            "decay": self.decay,
            "shown": seen,
        }
        if self.rounds is not None:
            return self._in_rounds(task, start, options, settings)
        posed = problem(task, self.step, anchor=self.anchor, **settings)
        result = run(posed, self.x_update, start, self._data(task, options), options)
        return Aligned(result.y, result.x, [result])

    def _data(self, task, options, pairs=None):
        """Without the kind of feedback that counts nothing."""
        if self.weights is not None:
            gone = [bool(jnp.asarray(weight) == 0) for weight in self.weights]
            task = eqx.tree_at(
                lambda t: (t.prompts, t.demonstrations, t.preferences),
                task,
                (
                    task.asked(),
                    None if gone[0] else task.demonstrations,
                    None if gone[1] else task.preferences,
                ),
                is_leaf=lambda leaf: leaf is None,
            )
        return data(task, batch_size=options.batch_size, prompts=options.prompts, pairs=pairs)

    def _in_rounds(self, task, start, options, settings) -> Aligned:
        plan, (x, y), results, told = self.rounds, start, [], []
        assert plan is not None
        learn = problem(task, Hold(), **settings)
        for key in jax.random.split(options.key, plan.rounds):
            saying, one, two = jax.random.split(key, 3)
            pairs = None
            if plan.stored and task.demonstrations is not None:
                said = generate(
                    task.policy,
                    y,
                    task.demonstrations.prompts,
                    saying,
                    temperature=plan.temperature,
                )
                told.append((task.demonstrations._replace(reference=None), said))
                earlier = told[1:-1] if plan.replay else []
                pairs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), told[-1], *earlier)
            begin = Start(start.reward if plan.fresh else x, y)
            feed = self._data(task, options, pairs)
            found = run(learn, self.x_update, begin, feed, options._replace(key=one))
            x, results = found.x, [*results, found]

            anchored = task
            if isinstance(self.anchor, Moving):  # the policy of the last round
                anchored = eqx.tree_at(lambda t: t.reference, task, y)
            reached = options._replace(key=two, steps=plan.policy_steps)
            found = follow(anchored, self.step, Start(x, y), feed, reached, settings["shown"])
            y, results = found.y, [*results, found]
        return Aligned(y, x, results)


def IRL(step: AbstractPolicyStep, **settings: Any) -> AIHF:
    """Inverse reinforcement learning: `AIHF` on the demonstrations alone."""
    return AIHF(step, weights=Weights(1.0, 0.0), **settings)


def run(
    posed: Problem, x_update: AbstractUpdate, start: Start, feed: Data, options: Options
) -> Result:
    """TTSA on a problem of reward learning."""
    return solve(
        posed,
        TTSA(x_update),
        start.reward,
        start.policy,
        data=feed,
        steps=options.steps,
        key=options.key,
        metrics=dict(options.metrics),
        log_every=min(options.log_every, options.steps),
        keep=options.keep,
        **{"certify": False, **options.rest},
    )


def follow(
    task: Task,
    step: AbstractPolicyStep,
    start: Start,
    feed: Data,
    options: Options,
    shown: Reward | None = None,
) -> Result:
    """Only the policy moves: KL-regularised reinforcement learning on a reward that rests."""
    posed = problem(task, step, shown=shown, weights=Weights(0.0, 0.0))
    posed = Problem(posed.upper, posed.lower, hypergradient=_nothing, lower_step=posed.lower_step)
    return run(posed, as_update(0.0), start, feed, options)


def _nothing(x, y, batch):
    return trees.zeros_like(x)


def _seen(task: Task, responses: int, key: RandomKey) -> Reward | None:
    if not responses:
        return None
    if task.reward is None:
        raise ValueError("the task has no reward to learn: give Task(..., reward=...).")
    asked = task.asked()
    some = jax.tree.map(lambda leaf: leaf[jnp.arange(responses) % size(asked)], asked)
    said = generate(task.policy, task.reference, some, jax.random.fold_in(key, 0x5EE))
    return Normalised(task.reward, said)
