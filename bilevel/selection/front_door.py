"""The front door: run the method that was given, or the one that is chosen."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.certificates import Certificate, spectrum
from bilevel.data import Data
from bilevel.driver import validate
from bilevel.driver.checkpoint import Checkpoint
from bilevel.driver.log import Metrics
from bilevel.driver.prepare import Callback, Options
from bilevel.driver.result import Best, Outcome, Result, SolveError, Status
from bilevel.driver.solve import drive
from bilevel.methods import MAID
from bilevel.methods.base import AbstractMethod
from bilevel.problem import Problem, Structure
from bilevel.selection.choose import (
    SMALL,
    Choice,
    Raced,
    check_alone,
    choose,
    is_small,
    raced,
    whole,
)
from bilevel.typing import Lower, RandomKey, Upper

BRIEF = 1000  # steps of a run with few variables that take less time than compiling them well
FAR = 1e4  # times 1 + ‖x0‖
LOST = 0.1  # of what a race gained: where a run loses more, the second of the race is run, too
STUCK = 1e-2  # times 1 + |f|: stationarity beyond which MAID has not ended at a solution
ROUNDING = 1e-6  # times 1 + |f|
# Options that only a method uses, not the global search.
METHODS_OWN = ("metrics", "callbacks", "checkpoint")


def solve(
    problem: Problem,
    method: AbstractMethod | None = None,
    x0: Upper | None = None,
    y0: Lower | None = None,
    *,
    data: Data | None = None,
    steps: int = 1000,
    key: RandomKey | None = None,
    tol: float = 0.0,
    log_every: int = 100,
    metrics: Metrics | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: Checkpoint | str | Path | None = None,
    state: Any = None,
    progress: bool | None = None,
    keep: str | Best = "last",
    certify: bool = True,
    throw: bool = False,
    follower: str = "optimistic",
) -> Result:
    """Solve a bilevel problem: `steps` updates of the upper variable by a method.

    Without a method one is chosen by what the problem declares and a look at its curvature
    (`bilevel.selection.choose` says how), and the status tells which and why. A problem with
    constraints and at most 40 variables is searched globally instead; the certificate then says
    how far y is from the follower's best answer. With more variables, a problem of linear
    constraints, a linear or quadratic lower loss and a linear upper loss (few squares may be in it)
    goes to HiGHS where that is installed; the certificate then holds a proven bound.

    Chunks of `log_every` steps run as one compiled loop; between them the host measures, shows
    progress, saves, and stops what diverges. A look costs about a tenth of a millisecond: raise
    `log_every` where a step takes microseconds.

    Args:
        problem, method: what, and how; refused before compiling if they do not fit. A method that
            is absent is chosen.
        x0, y0: starting points, pytrees of floating arrays. They are copied.
        data: `bl.Data`; without, both losses get `None`.
        steps: how many updates in all. A run resumed from a checkpoint makes the missing ones; a
            run from a given `state` makes this many more.
        key: all randomness, of the method and of the samples; `jax.random.key(0)` when absent.
        tol: stop once the certificate's stationarity is at most this, looked at every
            `log_every` steps; 0 never does.
        metrics: names to functions `(x, y) -> number`, evaluated every `log_every` steps.
        callbacks: called as `callback(step, state, row)` every `log_every` steps, with `row` the
            new line of the history; one that returns something true stops the run. The first
            Ctrl-C stops it as well, after the chunk; a second one at once.
        checkpoint: a folder, or `bl.Checkpoint` with more to say. Holds the run's state; a run
            that finds its own state there goes on from it, bit for bit.
        state: a method's state to start from instead of x0 and y0; it is copied.
        progress: show a progress bar; absent, only when standard error is a terminal.
        keep: "last" iterate, or the best by a metric: its name (smallest is best) or `bl.Best`.
        certify: end with a certificate of what was reached, on the whole data (on one batch of a
            sampler or stream).
        throw: raise `SolveError` when the status is not ok.
        follower: of answers that are equally good to the follower, y is the one with the least
            upper loss ("optimistic"), or the one with the largest ("pessimistic"; for problems
            that are searched globally, without a constraint on y*(x)). The certificate holds both
            values where they differ.

    Returns:
        `Result`. A run that diverges ends within one chunk, with the last finite iterate.

    Raises:
        TypeError, ValueError: a wrong use, in one sentence, before anything compiles.

    On several devices: put x0, y0 or the rows of the data on a mesh, and all else follows. Over
    several processes, each makes the same call; the first one shows progress, and a checkpoint's
    folder is one that all of them see.
    """
    options = Options(
        data, steps, key, tol, log_every, metrics, callbacks, checkpoint, progress, keep, certify
    )
    _check_follower(follower, problem, method)
    if follower == "pessimistic":
        result = _solve_pessimistic(problem, x0, y0, state, options)
    elif method is not None:
        result = drive(problem, method, x0, y0, state, options)
    else:
        result = _solve_chosen(problem, x0, y0, state, options)
    if throw and not result.status.ok:
        raise SolveError(result)
    return result


def _check_follower(follower: str, problem: Problem, method: AbstractMethod | None) -> None:
    if follower not in ("optimistic", "pessimistic"):
        raise ValueError(f"follower is {follower!r}; it is 'optimistic' or 'pessimistic'.")
    if follower == "pessimistic" and method is not None:
        raise ValueError(
            f"follower='pessimistic' is for the global search, and {type(method).__name__} was "
            "given. Leave the method out."
        )


def _solve_pessimistic(problem: Problem, x0: Any, y0: Any, state: Any, options: Options) -> Result:
    from bilevel.global_search import solve_pessimistic

    x0, y0, options = _checked_start(problem, x0, y0, state, options)
    tied = any(Structure.UPPER_COUPLED in found.kinds for found in problem.structure())
    if tied or not is_small(problem, x0, y0, options.data):
        raise ValueError(
            f"follower='pessimistic' takes at most {SMALL} variables in x and y, whole data, and "
            "no constraint on y*(x). Pose a smaller problem, or leave follower out."
        )
    check_alone(**{name: bool(getattr(options, name)) for name in METHODS_OWN})
    why = f"Chose the global search for small problems: a pessimistic follower, {SMALL} variables "
    return solve_pessimistic(problem, x0, y0, whole(options.data), why=f"{why}at most")


def _checked_start(problem: Problem, x0: Any, y0: Any, state: Any, options: Options):
    """The arguments, once they are known to fit."""
    if state is not None:
        raise ValueError("state belongs to a method: give the method that made it, too.")
    validate.check_problem(problem)
    options = options._replace(callbacks=validate.as_callbacks(options.callbacks))
    validate.check_options(options)
    validate.check_concrete(problem, x0, y0, options.key, options.data and options.data.content)
    return *validate.check_start(problem, x0, y0), options


def _solve_chosen(problem: Problem, x0: Any, y0: Any, state: Any, options: Options) -> Result:
    """By a method that is chosen here, or the global search."""
    from bilevel.global_search import solve_small  # imports scipy.optimize: seconds

    x0, y0, options = _checked_start(problem, x0, y0, state, options)
    methods_own = {name: bool(getattr(options, name)) for name in METHODS_OWN}
    choice = choose(
        problem,
        x0,
        y0,
        data=options.data,
        key=options.key,
        steps=options.steps,
        programs=not any(methods_own.values()),
    )
    batch = whole(options.data)
    if choice.result is not None:
        return choice.result
    if choice.method is not None:
        result, doubt = _checked(problem, choice, x0, y0, options)
        small = is_small(problem, x0, y0, options.data)
        if not any(methods_own.values()) and _is_stuck(choice, result, small):
            return _raced_after(problem, result, x0, y0, options)
        if not doubt or any(methods_own.values()):
            return result
        if result.status.outcome is not Outcome.DIVERGED and not _is_far(result.x, x0):
            x0, y0 = result.x, result.y
        choice = choice._replace(
            why=f"{choice.why}; it {doubt}, so the global search for small problems came after it"
        )
    check_alone(**methods_own)
    return solve_small(problem, x0, y0, batch, why=choice.why)


def _checked(
    problem: Problem, choice: Choice, x0: Upper, y0: Lower, options: Options
) -> tuple[Result, str]:
    """A run of the chosen method, and a reason to search globally after it, or nothing.

    The follower of a small problem is asked again globally where the run ended.
    """
    from bilevel.global_search import check_small, verdict

    assert choice.method is not None
    brief = options.checkpoint is None and options.steps <= BRIEF
    options = options._replace(answer=choice.lags, brief=brief)
    result = drive(problem, choice.method, x0, y0, None, options)
    if choice.raced is not None and result.status.outcome in (Outcome.FINISHED, Outcome.DIVERGED):
        return _held(problem, choice, result, x0, y0, options), ""
    result = result._replace(status=_with(choice, result.status))
    outcome, advice = result.status
    others = Outcome.DIVERGED, Outcome.STALLED, Outcome.INFEASIBLE
    ended = result.status.ok or outcome in others
    if not (ended and options.certify and is_small(problem, x0, y0, options.data)):
        return result, ""
    try:
        proof, y = check_small(problem, result.x, result.y, whole(options.data))
    except Exception as error:  # the run itself is done, and stays
        told = f"the follower was not asked again: {type(error).__name__}: {error}"
        stats = result.stats._replace(notes=(*result.stats.notes, told))
        return result._replace(stats=stats), ""
    proof = proof._replace(local=result.certificate)
    result = result._replace(certificate=proof)
    if outcome is Outcome.DIVERGED:
        return result, "diverged"
    doubt = ""
    if not (proof.feasible and proof.optimal and proof.bounded) or (proof.ok and outcome in others):
        outcome, words = verdict(proof)
        advice = _told(choice, words)
    else:
        advice = f"{advice} {proof.about_y()} {proof.about_x()}"
    if not proof.ok and outcome is not Outcome.UNBOUNDED:
        wrong = "x still improves" if proof.optimal else "the follower has a better answer"
        doubt = f"ended where {wrong if proof.feasible else 'a constraint does not hold'}"
    elif proof.ok and proof.minima > 1:
        doubt = "ended at one of several minima of the lower problem"
    elif outcome is not Outcome.UNBOUNDED and _is_far(result.x, x0):
        doubt = "ended far from where it began"
    return result._replace(y=y, status=Status(outcome, advice)), doubt


def _held(
    problem: Problem, choice: Choice, result: Result, x0: Upper, y0: Lower, options: Options
) -> Result:
    """The run of the race's winner, or that of the second, if the winner got worse after the race.

    The second runs only where the winner's run lost more than `LOST` of what the race had gained;
    then the better of the two runs is returned, judged as in the race. A run that ends with a
    larger upper loss than it began with is called stalled.
    """
    went, second = choice.raced, None
    assert went is not None
    value, least = _judged(went, result), LOST * max(went.start - went.reached, 0.0)
    if value <= went.reached + least + ROUNDING * (1 + abs(went.reached)):
        return result._replace(status=_with(choice, result.status))
    told = (
        f"In the race the upper loss fell from {went.start:.4g} to {went.reached:.4g}, and the "
        f"run ended at {value:.4g}"
    )
    if went.second is not None and not any(getattr(options, name) for name in METHODS_OWN):
        second = drive(problem, went.second, x0, y0, None, options)
        told = f"{told}, that of {type(went.second).__name__}, the second, at "
        told = f"{told}{_judged(went, second):.4g}"
    if second is not None and _judged(went, second) < value:
        value, result = _judged(went, second), second
        told = f"{told}, which is kept"
    outcome, advice = result.status
    if value > went.start and outcome is not Outcome.DIVERGED:
        outcome, told = Outcome.STALLED, f"{told}; that is worse than the start"
    return result._replace(status=_with(choice, Status(outcome, f"{told}. {_upper(advice)}")))


def _is_stuck(choice: Choice, result: Result, small: bool) -> bool:
    """Whether MAID, which theory chose, ended far from a stationary point of a large problem."""
    proof = result.certificate
    if small or not isinstance(choice.method, MAID) or not isinstance(proof, Certificate):
        return False
    near = proof.stationarity <= STUCK * (1 + abs(proof.value))
    return result.status.outcome is Outcome.STALLED and not near


def _raced_after(problem: Problem, stuck: Result, x0: Upper, y0: Lower, options: Options) -> Result:
    """The winner of a race, where it ends better than the method that theory chose."""
    why = "MAID came first, and ended far from a stationary point"
    try:
        second = raced(problem, x0, y0, why, options.data, options.key, options.steps)
    except ValueError:  # no other method got anywhere
        return stuck
    options = options._replace(answer=second.lags)
    assert second.method is not None
    assert second.raced is not None
    result = drive(problem, second.method, x0, y0, None, options)
    result = _held(problem, second, result, x0, y0, options)
    better = _judged(second.raced, result) < _judged(second.raced, stuck)
    return result if better else stuck


def _judged(went: Raced, result: Result) -> float:
    """The score of where a run ended."""
    diverged = result.status.outcome is Outcome.DIVERGED
    return math.inf if diverged else went.score(result.x, result.y)


def _with(choice: Choice, status: Status) -> Status:
    return Status(status.outcome, _told(choice, status.advice))


def _upper(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:]}"


def _told(choice: Choice, then: str) -> str:
    """Why a method was chosen, and what came of it, in sentences."""
    return f"{choice.why}. {_upper(then)}"


def _is_far(x: Upper, start: Upper) -> bool:
    """Whether a run left all that a search from its start would look at."""
    size, at_first = (np.linalg.norm(spectrum.ravel(tree)) for tree in (x, start))
    return bool(size > FAR * (1 + at_first))
