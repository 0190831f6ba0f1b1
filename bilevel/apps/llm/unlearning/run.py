"""From files to a model that has forgotten: what `bilevel unlearn` does.

given = load(asked)
found = train(given, Path("forgotten.run"))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.apps.llm.policies.policy import referred
from bilevel.apps.llm.run.method import policy_update
from bilevel.apps.llm.run.session import LOWER, out_of_memory
from bilevel.apps.llm.run.several import Opened, open_files, parted
from bilevel.apps.llm.unlearning import task
from bilevel.apps.llm.unlearning.blur import BLUR, Loss, WeightedSum
from bilevel.apps.llm.unlearning.settings import Combine, Forget, Priority, Retain, Unlearn
from bilevel.driver import Result
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.selection import solve

JUDGED = 64  # rows of each kind that are judged by, at most


class Session(NamedTuple):
    """A model with what it is to forget and to retain."""

    opened: Opened
    settings: Unlearn
    answers: task.Answers  # to learn from
    judged: task.Answers  # to judge by; those to retain are held out where there are


def load(asked: Unlearn) -> Session:
    """Read and check everything.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence.
    """
    opened = open_files(asked.model, {"forget": asked.forget, "retain": asked.retain}, asked)
    forget, (retain, held) = opened.rows["forget"], parted(opened.rows["retain"], asked)
    learned = task.Answers(
        referred(opened.policy, opened.start, opened.responses(forget), rows=asked.batch),
        opened.responses(retain),
    )
    few = forget[:JUDGED], (held or retain)[:JUDGED]
    return Session(opened, asked, learned, task.Answers(*map(opened.responses, few)))


def problem(given: Session) -> Problem:
    """The two losses, combined as the options say."""
    asked, policy = given.settings, given.opened.policy
    forget: Loss = (
        task.NPO(policy, asked.beta)
        if asked.forget_loss is Forget.NPO
        else task.Ascent(policy)
    )  # fmt: skip
    retain: Loss = (
        task.Likelihood(policy)
        if asked.retain_loss is Retain.LIKELIHOOD
        else task.Divergence(policy, given.opened.start)
    )
    if asked.combine is Combine.SUM:
        return WeightedSum(asked.weight).problem(forget, retain)
    first = (forget, retain) if asked.priority is Priority.FORGET else (retain, forget)
    return BLUR(asked.gamma).problem(*first)


def train(
    given: Session,
    folder: Path | None,
    *,
    callbacks: Sequence[Callable[[int, Any, Any], Any]] = (),
) -> Result:
    """Forget, with the state of the run kept in a folder; goes on where an earlier call ended.

    The result's x are the parameters of the policy. The metrics are the mean probabilities of the
    tokens to forget and to retain.

    Raises:
        ValueError: out of memory, with what to lower.
    """
    asked, policy = given.settings, given.opened.policy
    judged = zip(task.Answers._fields, given.judged, strict=True)
    try:
        return solve(
            problem(given),
            TTSA(policy_update(asked, asked.steps)),
            given.opened.start,
            jnp.zeros(()),
            data=task.data(given.answers, asked.batch),
            steps=asked.steps,
            key=jax.random.key(asked.seed),
            metrics={name: task.probability(policy, rows) for name, rows in judged},
            log_every=min(asked.log_every, asked.steps),
            callbacks=callbacks,
            checkpoint=folder,
            certify=False,
            progress=False,
        )
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ValueError(LOWER) from error
