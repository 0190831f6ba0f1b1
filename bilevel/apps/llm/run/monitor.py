"""What is looked at while a model is aligned, and what ends a run that goes wrong."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from bilevel.apps.llm.policies.policy import Preferences, log_ratio, referred, size
from bilevel.apps.llm.run.prepared import Session
from bilevel.apps.llm.run.settings import Method

SURE = 0.05  # nats of entropy a response: of four responses drawn, few differ
PROGRESS_COLUMNS = ("reward", "KL", "accuracy", "reward accuracy", "loss")


def metrics(given: Session) -> dict[str, Callable[[PyTree, PyTree], Array]]:
    """What is looked at, as functions of the reward's and the policy's parameters.

    KL, the policy's reward, and on held-out feedback the share of pairs in the right order, by the
    policy's log-ratio and by the reward where one is learned, and the loss of demonstrations.
    """
    task, batch = given.task, given.settings.batch
    policy, reference, reward = task.policy, task.reference, task.reward
    few = jax.tree.map(lambda leaf: leaf[: 2 * batch], task.prompts_to_answer())
    # Bound as a Partial, arrays are arguments of the compiled program, not constants in it.
    found = {"KL": Partial(_divergence, policy, reference, few)}
    if reward is not None:
        found["reward"] = Partial(_reward, policy, reward, few)
        found["entropy"] = Partial(_entropy, policy, few)
    if given.held is not None:
        pairs = (referred(policy, reference, side, rows=batch) for side in given.held)
        found["accuracy"] = Partial(_accuracy, policy, Preferences(*pairs))
    if given.held is not None and reward is not None:
        found["spread"] = Partial(_spread, reward, given.held)
        found["reward accuracy"] = Partial(_reward_accuracy, reward, given.held)
    if given.shown is not None:
        found["loss"] = Partial(_loss, policy, given.shown)
    return found


def _said(policy, few, y):
    return policy.sample(y, few, jax.random.key(7))  # the same draws every time


def _divergence(policy, reference, few, x, y):
    words = _said(policy, few, y)
    return (policy.logprob(y, words) - policy.logprob(reference, words)).mean()


def _reward(policy, reward, few, x, y):
    return reward(x, _said(policy, few, y)).mean()


def _entropy(policy, few, x, y):
    return -policy.logprob(y, _said(policy, few, y)).mean()


def _spread(reward, pairs, x, y):
    return jnp.abs(reward(x, pairs.chosen) - reward(x, pairs.rejected)).mean()


def _reward_accuracy(reward, pairs, x, y):
    return (reward(x, pairs.chosen) > reward(x, pairs.rejected)).mean()


def _accuracy(policy, pairs, x, y):
    # One by one, as the reference was taken: at the start all ratios are then 0, not rounding.
    return (log_ratio(policy, y, pairs.chosen) > log_ratio(policy, y, pairs.rejected)).mean()


def _loss(policy, shown, x, y):
    return -policy.logprob(y, shown).mean()


def _limit(given: Session) -> float:
    """The divergence at which a run is ended, in nats a response."""
    if given.settings.method is Method.SFT:
        return math.inf
    if given.settings.divergence is not None:
        return given.settings.divergence
    return max(100.0, 2.0 * given.policy.drawing.new)


class Monitor:
    """Ends a run that goes wrong, and keeps what it was before; warns of one that gets nowhere.

    Wrong is a KL above its limit, or a reward that no longer tells held-out responses apart. SFT
    has no limit: it may go as far from the model given as the demonstrations are. A warning is
    told once.
    """

    def __init__(self, given: Session, told: Callable[[str], Any]):
        self._settings, self._tokens, self._told = given.settings, given.tokens, told
        self._start = given.task.reference
        self._pairs = 0 if given.held is None else size(given.held)
        self._warned: set[str] = set()
        self._limit, self._spread = _limit(given), 0.0
        self._before: tuple[int, float] | None = None  # step and time of the last call
        self.good: tuple[int, PyTree, PyTree] | None = None
        self.why: str | None = None

    def __call__(self, step: int, state: Any, row: Any) -> bool:
        self.why = self._wrong(row)
        now = time.perf_counter()
        told = [f"{name} {row[name]:.3g}" for name in PROGRESS_COLUMNS if name in row]
        if self._before is not None:  # the first steps are mostly compilation
            made, seconds = step - self._before[0], now - self._before[1]
            told.append(f"{made * self._tokens / seconds:,.0f} tokens/s")
        self._before = step, now
        self._told(f"step {step}: {', '.join(told)}")
        for warning in {*self._warnings(step, row)} - self._warned:
            self._warned.add(warning)
            self._told(f"warning: {warning}")
        if self.why is None:
            self.good = step, *self._both(state)
        return self.why is not None

    def _both(self, state) -> tuple[PyTree, PyTree]:
        """Reward and policy; where a single level is minimised, x is the one that moves."""
        if not self._settings.method.learns_reward:
            return None, state.x
        alone = jax.tree.structure(state.y) != jax.tree.structure(self._start)
        return state.x, self._start if alone else state.y

    def _warnings(self, step: int, row) -> Iterator[str]:
        """Why a policy will not follow its reward, or should not."""
        if row.get("entropy", SURE) < SURE:
            yield (
                "the policy is sure of what it says, so the responses drawn to a prompt are alike "
                "and teach nothing. Start from a model with fewer steps of sft, raise --beta, or "
                "draw more --samples."
            )
        chance = 0.5 + self._pairs**-0.5 if self._pairs else 0.0  # and two standard errors
        if 2 * step >= self._settings.steps and row.get("reward accuracy", 1.0) <= chance:
            yield (
                "the reward orders held-out pairs no better than chance, and the policy follows "
                "it. Give more feedback, make more --steps, or change --reward-rate."
            )

    def _wrong(self, row) -> str | None:
        if math.isnan(row["KL"]):
            return "the policy is not finite any more. Lower --rate, or set --max-grad-norm."
        if row["KL"] > self._limit:
            return (
                f"KL explosion: the policy is {row['KL']:.3g} nats from the model it started from. "
                "Raise --beta, lower --rate, or make fewer steps."
            )
        spread = row.get("spread", 1.0)
        self._spread = max(self._spread, spread)
        if self._spread > 1e-3 and spread < 1e-2 * self._spread:
            return (
                "reward collapse: the reward no longer tells held-out responses apart. Lower "
                "--reward-rate, or give preferences along with demonstrations."
            )
        return None
