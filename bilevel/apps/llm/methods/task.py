"""An alignment task (policy, reference and feedback) and its batches."""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import PyTree, ScalarLike

from bilevel.apps.llm.data.sources import Together
from bilevel.apps.llm.policies.policy import AbstractPolicy, Preferences, Responses, size
from bilevel.apps.llm.policy_steps.policy_step import Prompts
from bilevel.apps.llm.rewards.reward import Reward
from bilevel.data import Data, Sampler
from bilevel.data.reading import as_source
from bilevel.fields import nonnegative


class Task(eqx.Module):
    """A policy to align, and the feedback to align it with.

    Attributes:
        policy: the model; its parameters are y.
        reference: parameters of π_ref.
        beta: β, weight of `KL(π ‖ π_ref)`.
        reward: `reward(x, responses)`, for methods that learn a reward.
        prompts: the prompts that the policy answers during training; if `None`, those of the
            demonstrations, or else of the preferences.
    """

    policy: AbstractPolicy
    reference: PyTree
    beta: ScalarLike = nonnegative()
    reward: Reward | None = None
    demonstrations: Responses | None = None
    preferences: Preferences | None = None
    prompts: PyTree = None

    def prompts_to_answer(self) -> PyTree:
        """The prompts that the policy answers during training.

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
    pairs: tuple[Responses, Responses] | None = None  # demonstrations and own responses


class Weights(NamedTuple):
    """Weights of the mean losses of the two kinds of feedback."""

    demonstrations: ScalarLike
    preferences: ScalarLike


def by_counts(task: Task) -> Weights:
    """Weights proportional to the counts, so that all data have the same weight; their sum is 1.

    If both losses are likelihoods of one reward, this is the maximum-likelihood estimator.
    """
    counts = [0 if rows is None else size(rows) for rows in (task.demonstrations, task.preferences)]
    if not sum(counts):
        raise ValueError("the task has no feedback: give demonstrations, preferences or both.")
    return Weights(*(count / sum(counts) for count in counts))


# --- batches -------------------------------------------------------------------------------------


def data(
    task: Task,
    *,
    batch_size: int | None = None,
    prompts: int | None = None,
    pairs: tuple[Responses, Responses] | None = None,
) -> Data:
    """Feedback for the upper level, prompts and randomness for the lower one.

    Args:
        batch_size: rows of each kind of feedback in a batch; all if `None`.
        prompts: prompts in a lower batch; all if `None`.
        pairs: demonstrations with own responses, which replace the demonstrations of the task.
    """
    prompts_to_answer = rows_of("prompts", task.prompts_to_answer(), prompts)
    randomly = Together(Prompts(prompts_to_answer, Sampler(_itself)))  # pyright: ignore
    return Data(feedback(task, batch_size, pairs), randomly)


def feedback(
    task: Task, batch_size: int | None = None, pairs: tuple[Responses, Responses] | None = None
) -> Together:
    """Only the upper half of `data`."""
    demonstrations = None if pairs is not None else task.demonstrations
    kinds: dict[str, Any] = {
        "demonstrations": demonstrations,
        "preferences": task.preferences,
        "pairs": pairs,
    }
    sources: dict[str, Any] = {name: rows_of(name, p, batch_size) for name, p in kinds.items()}
    return Together(Feedback(**sources))


def rows_of(name: str, rows: PyTree, batch_size: int | None):
    """Batches of rows, epoch after epoch; all of them where they are fewer than a batch."""
    if rows is None:
        return None
    n = size(rows)
    few = None if batch_size is None or batch_size >= n else batch_size
    return as_source(name, rows, few, "epochs")


def _itself(key):
    return key
