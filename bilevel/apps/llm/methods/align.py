"""One interface to every way to align a policy: `align(task, method, steps=...)`."""

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bilevel.apps.llm.methods.task import Task
from bilevel.driver import Best, Checkpoint, Outcome, Result
from bilevel.driver.fingerprint import digest
from bilevel.fields import Checked
from bilevel.typing import RandomKey


class Aligned(NamedTuple):
    """What came out."""

    policy: PyTree  # parameters
    reward: PyTree | None  # parameters, of those that learn a reward
    results: list[Result]  # of every phase that was begun, in order

    @property
    def history(self) -> dict[str, Any]:
        """Of the last phase."""
        return self.results[-1].history

    @property
    def ended(self) -> bool:
        """Whether the last phase came to its end, so that another may follow.

        One that was interrupted, stopped by a callback, or that diverged, is the run's last.
        """
        return self.results[-1].status.outcome in (Outcome.FINISHED, Outcome.CONVERGED)


class AbstractAlignment(Checked):
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
    phase: int = 1  # of the method's, where it has several

    def settings(self, start: PyTree) -> dict[str, Any]:
        """Arguments of `bl.solve`, without the metrics, for a phase that begins at `start`.

        Every phase keeps its state in its own folder, from which a restarted run resumes. From the
        second phase on, the folder's name depends on `start`, so that a phase never resumes a run
        that began somewhere else.
        """
        found = {
            "steps": self.steps,
            "key": self.key,
            "log_every": min(self.log_every, self.steps),
            "keep": self.keep,
            "certify": False,
            **self.rest,
        }
        if (kept := found.get("checkpoint")) is not None:
            kept = kept if isinstance(kept, Checkpoint) else Checkpoint(kept)
            name = f"phase-{self.phase}" + (f"-{digest(start)}" if self.phase > 1 else "")
            found["checkpoint"] = kept._replace(folder=Path(kept.folder) / name)
        return found


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
        steps: updates of the upper variable: of the reward, or of the policy in a baseline.
        reward, policy: parameters to start from; a policy absent starts as the reference.
        batch_size, prompts: rows of feedback, and prompts to answer, a step; all if `None`.
        metrics: names to functions of the reward's and the policy's parameters (the first `None`
            in a baseline without a reward), evaluated every `log_every` steps.
        keep: the "last" iterate, or the best by a metric.
        options: handed to `bl.solve`: `checkpoint`, `progress`, ... A method of several phases
            keeps each in a folder of its own inside the checkpoint's; the same call goes on in the
            phase that was not finished, and ends like one that was never interrupted, bit for bit.
            Responses that a finished phase had drawn are drawn again, from the same key.
    """
    policy = task.reference if policy is None else policy
    key = jax.random.key(0) if key is None else key
    chosen = Options(steps, key, batch_size, prompts, metrics or {}, log_every, keep, options)
    return method.run(task, Start(reward, policy), chosen)
