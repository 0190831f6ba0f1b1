"""Feedback on what a language model says, made from a gold reward.

The true reward is `scale · gold`. Demonstrations are draws of the expert, which is the model tilted
by it, `π ∝ π_ref exp(scale · gold / β)`: one of several draws, taken with probability proportional
to the tilt. Preferences compare two draws of the model, with a label of the Bradley-Terry model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gold_reward import gold
from bilevel.apps.llm.policies.model import PromptBatch
from bilevel.apps.llm.policies.policy import AbstractPolicy, Preferences, Responses, generate
from bilevel.apps.llm.rewards.reward import Reward

BETA = 1.0  # β of the true objective


class Sizes(NamedTuple):
    """How much feedback there is, and how much of it a step reads."""

    demonstrations: int
    pairs: int
    held: int  # pairs to judge a reward by
    judged: int  # prompts to judge a policy by
    answers: int  # to each prompt of judging
    tries: int  # draws of the model that the expert chooses from
    batch: int  # rows of feedback a step
    prompts: int  # to answer in a step


class Base(NamedTuple):
    """A model to align, and prompts that no training was about."""

    policy: AbstractPolicy
    params: Any  # of the policy, at its start
    prompts: PromptBatch
    read: Callable[[np.ndarray, np.ndarray], list[str]]  # rows of tokens and masks as text
    reward: Reward  # that methods learn
    reward_start: Any  # its parameters
    sizes: Sizes
    words: list[str] | None = None  # by token, where a token is a word


class World(NamedTuple):
    """The feedback of one seed."""

    base: Base
    gold: str
    demonstrations: Responses
    preferences: Preferences
    held: Preferences
    prompts: PromptBatch  # to judge a policy by, each in several rows, one after another


def said(base: Base, rows: Responses | PromptBatch) -> list[str]:
    """Responses, or prompts, as text."""
    return base.read(np.asarray(rows.tokens), np.asarray(rows.mask))


def scores(base: Base, name: str, rows: Responses) -> np.ndarray:
    """The gold reward of responses."""
    return gold.GOLDS[name](said(base, rows))


def world(base: Base, name: str, seed: int) -> World:
    """Feedback of one seed; prompts of feedback and of judging are different ones."""
    rng, sizes = np.random.default_rng([seed, 1]), base.sizes
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    ends = np.cumsum([sizes.demonstrations, sizes.pairs, sizes.held, sizes.judged])
    order = rng.permutation(len(base.prompts.tokens))[: ends[-1]]
    shown, compared, held, judged = np.split(order, ends[:-1])

    def asked(rows, times):
        at = np.repeat(rows, times)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[at]), base.prompts)

    def draws(rows, times):
        found = generate(base.policy, base.params, asked(rows, times), next(keys))
        true = gold.SCALE[name] * scores(base, name, found)
        return found, true.reshape(-1, times)

    def chosen(found, times, at):
        rows = np.arange(len(at)) * times + at
        return jax.tree.map(lambda leaf: leaf[rows], found)

    found, true = draws(shown, sizes.tries)
    tilted = (true / BETA + rng.gumbel(size=true.shape)).argmax(axis=1)
    demonstrations = chosen(found, sizes.tries, tilted)

    def pairs(rows):
        found, true = draws(rows, 2)
        first = rng.random(len(rows)) < 1 / (1 + np.exp(true[:, 1] - true[:, 0]))
        return Preferences(
            chosen(found, 2, np.where(first, 0, 1)), chosen(found, 2, np.where(first, 1, 0))
        )

    return World(
        base, name, demonstrations, pairs(compared), pairs(held), asked(judged, sizes.answers)
    )
