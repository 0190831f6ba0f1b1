"""One interface to all alignment methods: `align(task, method, steps=...)`."""

import abc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bilevel.apps.llm.methods.task import Task
from bilevel.driver import Best, Checkpoint, Outcome, Result
from bilevel.driver.fingerprint import digest
from bilevel.fields import Checked
from bilevel.typing import RandomKey


class Aligned(NamedTuple):
    """The result of `align`."""

    policy: PyTree  # parameters
    reward: PyTree | None  # parameters; `None` without a reward
    results: list[Result]  # of every phase that was started, in order

    @property
    def history(self) -> dict[str, Any]:
        """The history of all phases; steps, seconds and oracle calls are those of all together."""
        return joined([result.history for result in self.results])

    @property
    def ended(self) -> bool:
        """Whether the last phase was completed, so that another may follow.

        A phase that was interrupted, stopped by a callback, or that diverged ends the run.
        """
        return self.results[-1].status.outcome in (Outcome.FINISHED, Outcome.CONVERGED)


COUNTED = ("step", "seconds", "gradients")  # columns that start at zero in every phase


def joined(histories: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Histories one after another, in the columns that all have.

    A later one begins where the one before ends, so its row at step 0 is left out.
    """
    whole, *later = histories
    found = {name: whole[name] for name in whole if all(name in one for one in later)}
    for one in later:
        for name, column in found.items():
            before = column[-1] if name in COUNTED else 0
            found[name] = np.concatenate([column, before + one[name][1:]])
    return found


class AbstractAlignment(Checked):
    """An alignment method, bilevel or baseline, on the same data."""

    @abc.abstractmethod
    def run(self, task: Task, start: "Start", options: "Options") -> Aligned:
        """Align the policy of the task."""


class Start(NamedTuple):
    """Initial parameters and the random key."""

    reward: PyTree | None
    policy: PyTree


class Options(NamedTuple):
    """Run length, metrics, and further options of `bl.solve`."""

    steps: int
    key: RandomKey
    batch_size: int | None
    prompts: int | None
    metrics: Mapping[str, Callable]  # of (reward, policy) parameters
    log_every: int
    keep: str | Best
    rest: Mapping[str, Any]
    phase: int = 1  # of a method with several phases
    begun: int = 0  # steps of the phases before

    def after(self, results: Sequence[Result], **changes: Any) -> "Options":
        """The options of the phase that follows these."""
        begun = sum(int(result.state.k) for result in results)
        return self._replace(phase=len(results) + 1, begun=begun, **changes)

    def settings(self, start: PyTree) -> dict[str, Any]:
        """Arguments of `bl.solve`, without the metrics, for a phase that starts at `start`.

        Every phase has its own checkpoint folder, from which a restarted run resumes. From the
        second phase on, the name of the folder depends on `start`, so that a phase never resumes a
        run with another start.
        """
        found = {
            "steps": self.steps,
            "key": self.key,
            "log_every": min(self.log_every, self.steps),
            "keep": self.keep,
            "certify": False,
            **self.rest,
        }
        if self.begun:
            calls = found.get("callbacks", ())
            found["callbacks"] = [partial(_counted, self.begun, call) for call in calls]
        if (kept := found.get("checkpoint")) is not None:
            kept = kept if isinstance(kept, Checkpoint) else Checkpoint(kept)
            name = f"phase-{self.phase}" + (f"-{digest(start)}" if self.phase > 1 else "")
            found["checkpoint"] = kept._replace(folder=Path(kept.folder) / name)
        return found


def _counted(begun: int, call: Callable, step: int, state: Any, row: Any) -> Any:
    """A callback that is told the steps of all phases."""
    return call(begun + step, state, row)


def align(
    task: Task,
    method: AbstractAlignment,
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
        method: `AIHF(...)`, `IRL(...)`, or one of `baselines`.
        steps: number of updates of the upper variable: the reward, or the policy in a baseline.
        reward, policy: initial parameters; the policy defaults to the reference.
        batch_size, prompts: rows of feedback and prompts to answer per step; all if `None`.
        metrics: functions of the reward and the policy parameters, by name, evaluated every
            `log_every` steps. The first argument is `None` in a baseline without a reward.
        keep: the "last" iterate, or the best by a metric.
        options: passed to `bl.solve`: `checkpoint`, `callbacks`, ... Callbacks are told the steps
            of all phases together. A method with several phases
            stores each in its own folder inside the checkpoint. The same call resumes in the
            unfinished phase, and gives bitwise the same result as an uninterrupted run. Responses
            drawn by a finished phase are drawn again from the same key.
    """
    policy = task.reference if policy is None else policy
    key = jax.random.key(0) if key is None else key
    chosen = Options(steps, key, batch_size, prompts, metrics or {}, log_every, keep, options)
    return method.run(task, Start(reward, policy), chosen)
