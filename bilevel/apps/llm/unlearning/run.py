"""From files to a model that has forgotten: what `bilevel unlearn` does.

given = load(asked)
found = train(given, Path("forgotten.run"))
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.policies.policy import referred
from bilevel.apps.llm.run.kept import solve_one_level
from bilevel.apps.llm.run.method import policy_update
from bilevel.apps.llm.run.session import ADVICE
from bilevel.apps.llm.run.several import Opened, open_files, parted
from bilevel.apps.llm.unlearning import judge, losses, task, verdict
from bilevel.apps.llm.unlearning.blur import BLUR, Loss, WeightedSum
from bilevel.apps.llm.unlearning.settings import Combine, Forget, Priority, Retain, Unlearn
from bilevel.driver import Result
from bilevel.methods import TTSA
from bilevel.problem import Problem

JUDGED = 64  # rows of each kind that are judged by, at most


class Session(NamedTuple):
    """A model with what it is to forget and to retain."""

    opened: Opened
    settings: Unlearn
    answers: task.Answers  # to learn from
    judged: task.Answers  # to judge by; those to retain are held out where there are
    questions: dict[str, judge.Questions]  # for the report
    steered: int  # layers below the states that rmu steers


def load(asked: Unlearn) -> Session:
    """Read and check everything.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence.
    """
    files = {verdict.FORGET: asked.forget, verdict.RETAIN: asked.retain}
    more = {f"general, {file}": Path(file) for file in asked.general}
    more |= {verdict.UNSEEN: asked.unseen} if asked.unseen else {}
    every = open_files(asked.model, files | more, asked)
    opened = every._replace(rows={name: every.rows[name] for name in files})
    steered = _steered(opened, asked)
    _check_apart(opened.rows["forget"], opened.rows["retain"], asked)
    forget, (retain, held) = opened.rows["forget"], parted(opened.rows["retain"], asked)
    learned = task.Answers(
        referred(opened.policy, opened.start, opened.responses(forget), rows=asked.batch),
        opened.responses(retain),
    )
    few = forget[:JUDGED], (held or retain)[:JUDGED]
    judged = task.Answers(*map(opened.responses, few))
    kinds = every.rows | {verdict.RETAIN: [*held, *retain] if held else retain}
    questions = verdict.questions(every, kinds, JUDGED)
    return Session(opened, asked, learned, judged, questions, steered)


def _check_apart(forget: list[Row], retain: list[Row], asked: Unlearn) -> None:
    """No row is to be forgotten and retained."""
    gone = {(tuple(row.prompt), tuple(row.response)) for row in forget}
    both = sum((tuple(row.prompt), tuple(row.response)) in gone for row in retain)
    if both:
        rows = f"{both} rows of {asked.retain} are" if both > 1 else f"A row of {asked.retain} is"
        raise ValueError(f"{rows} in {asked.forget}, too; give each row to one of the two.")


def remembered(given: Session, y: PyTree) -> dict[str, judge.Remembered]:
    """What the policy y knows of the questions of the report, by kind."""
    opened = given.opened
    return verdict.memory(opened.policy, y, opened, given.questions, given.settings.batch)


def of_retrained(given: Session) -> dict[str, judge.Remembered] | None:
    """As `remembered`, of the model that was never told; `None` without one."""
    return verdict.of_retrained(given.settings, given.opened, given.questions)


def _steered(opened: Opened, asked: Unlearn) -> int:
    """The layer whose output is steered: one that learns, or one above."""
    layers, rest = opened.policy.config.layers, opened.policy.trained.below(opened.policy.config)
    at = asked.steered_layer or max(math.ceil(layers / 4), rest + 1)
    if at > layers:
        raise ValueError(f"--steered-layer is {at}, and the model has {layers} layers.")
    if at <= rest:
        raise ValueError(
            f"--steered-layer is {at}, and of the {layers} layers only those above {rest} learn. "
            f"Steer a higher one, or raise --layers to at least {layers - at + 1}."
        )
    return at


def problem(given: Session) -> Problem:
    """The two losses, combined as the options say."""
    asked, forget, retain = given.settings, _forget_loss(given), _retain_loss(given)
    match asked.combine:
        case Combine.ALONE:
            return single(forget)
        case Combine.SUM:
            return WeightedSum(asked.weight).problem(forget, retain)
        case Combine.BLUR:
            first = (forget, retain) if asked.priority is Priority.FORGET else (retain, forget)
            return BLUR(asked.gamma).problem(*first)


def _forget_loss(given: Session) -> Loss:
    asked, policy = given.settings, given.opened.policy
    match asked.forget_loss:
        case Forget.NPO:
            return task.NPO(policy, asked.beta)
        case Forget.ASCENT:
            return task.Ascent(policy)
        case Forget.RMU:
            key = jax.random.key(asked.seed)
            target = losses.steering(policy.config.width, asked.steering, key)
            return task.Steering(policy, given.steered, target)


def _retain_loss(given: Session) -> Loss:
    policy, start = given.opened.policy, given.opened.start
    match given.settings.retain_loss:
        case Retain.LIKELIHOOD:
            return task.Likelihood(policy)
        case Retain.DIVERGENCE:
            return task.Divergence(policy, start)
        case Retain.STATES:
            return task.SameStates(policy, given.steered, start)


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
        Refused: out of memory, with what to lower.
    """
    asked, policy = given.settings, given.opened.policy
    judged = zip(task.Answers._fields, given.judged, strict=True)
    return solve_one_level(
        problem(given),
        TTSA(policy_update(asked, asked.steps)),
        given.opened.start,
        task.data(given.answers, asked.batch),
        asked=asked,
        steps=asked.steps,
        folder=folder,
        metrics={name: task.probability(policy, rows) for name, rows in judged},
        callbacks=callbacks,
        advice=ADVICE,
    )
