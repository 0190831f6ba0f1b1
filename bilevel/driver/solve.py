"""A run in three acts: preparation, chunks with a look from the host in between, the result."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import sharding, trees
from bilevel.certificates import Certificate
from bilevel.driver.interrupt import Interrupt
from bilevel.driver.prepare import Options, Prepared, prepare
from bilevel.driver.progress import watch
from bilevel.driver.result import Outcome, Result, Stats, Status, advice
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Problem
from bilevel.typing import Lower, Upper

STATIONARY = 1e-6  # times 1 + |f|: a run that rounding ends there has converged


class Ended(NamedTuple):
    """Where the chunks of a run ended, and why."""

    state: State
    outcome: Outcome
    begin: int  # step at which the run began
    step: int  # step at which it ended
    certificate: Certificate | None  # of the state, where the run looked at it
    seconds: float
    compiling: float  # seconds until the loop was compiled
    exhausted: bool  # the method says that no further step helps
    failed: Exception | None  # what a loader raised


def drive(
    problem: Problem,
    method: AbstractMethod,
    x0: Upper | None = None,
    y0: Lower | None = None,
    state: Any = None,
    options: Options = Options(),
) -> Result:
    """Run a method on a problem from x0 and y0, or from a state; `bilevel.solve` says how."""
    with Interrupt() as interrupt:
        run = prepare(problem, method, x0, y0, state, options, interrupt.waiting)
        return _result(run, _run_chunks(run, interrupt), interrupt)


def _run_chunks(run: Prepared, interrupt: Interrupt) -> Ended:
    """Compiled chunks, and between them the log, the checkpoint, and reasons to stop."""
    state, options, log, saver = run.state, run.options, run.log, run.saver
    tol, log_every, target = options.tol, options.log_every, run.target
    begin = step = int(state.k)
    with interrupt.waiting():
        run.prefetcher.start(step, skip=step if run.resumed else 0)
    if not log.rows:
        log.add(step, state, {})
    outcome = certificate = compiling = failed = None
    together, exhausted = True, False
    name = type(run.method).__name__
    with watch(options.progress, name, step, target) as bar:
        bar.update(step, log.last)
        try:
            if sharding.any_process((interrupt.pressed,))[0]:
                outcome = Outcome.INTERRUPTED
            elif tol > 0 and run.resumed:
                certificate = run.certifier.of(state)
                outcome = _converged(certificate, tol)
            while outcome is None and step < target:
                n = min(log_every, target - step)
                following = min(log_every, target - step - n)
                try:
                    feed, n = run.prefetcher.next_chunk(n, following=following)
                except Exception as error:  # a loader's; what was reached stays
                    if step == begin or jax.process_count() > 1:
                        raise
                    outcome, failed = Outcome.OUT_OF_DATA, error
                    break
                if n == 0:
                    outcome = Outcome.OUT_OF_DATA
                    break
                if compiling is None:  # a chunk of no steps compiles, and does no work
                    state, *_ = run.loop(state, feed, 0)
                    compiling = log.seconds
                state, info, finite = run.loop(state, feed, n)
                if not finite:
                    outcome = Outcome.DIVERGED
                    break
                step += n
                row = log.add(step, state, info)
                bar.update(step, row)
                if saver is not None:
                    saver.save(step, (state, log.kept), log.rows)
                if tol > 0:
                    certificate = run.certifier.of(state)
                    outcome = _converged(certificate, tol)
                exhausted = bool(info.get("exhausted", False))
                if exhausted and outcome is None:
                    outcome = Outcome.STALLED
                if bool(info.get("settled", False)) and outcome is None:
                    exhausted, outcome = True, Outcome.FINISHED
                # The loop takes the state over; what a callback keeps must stay readable.
                with interrupt.waiting():
                    asked = [call(step, trees.copy(state), row) for call in options.callbacks]
                stopped, pressed = sharding.any_process((any(asked), interrupt.pressed))
                if stopped:
                    outcome = Outcome.STOPPED
                if pressed:
                    outcome = Outcome.INTERRUPTED
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                together = jax.process_count() == 1  # others cannot know that this one ends here
                raise
            outcome = Outcome.INTERRUPTED
        finally:
            if saver is not None:
                if together:
                    saver.save(step, (state, log.kept), log.rows, last=True)
                saver.close()
    outcome = Outcome.FINISHED if outcome is None else outcome
    seconds, compiling = log.seconds, 0.0 if compiling is None else compiling
    return Ended(state, outcome, begin, step, certificate, seconds, compiling, exhausted, failed)


def _is_stationary(certificate: Certificate | None) -> bool:
    """Whether x was measured to be stationary, relative to the size of the upper loss."""
    if certificate is None:
        return False
    return bool(certificate.stationarity <= STATIONARY * (1 + abs(certificate.value)))


def _converged(certificate: Certificate | None, tol: float) -> Outcome | None:
    """Whether stationarity was measured and is at most tol."""
    measured = certificate is not None and bool(certificate.stationarity <= tol)
    return Outcome.CONVERGED if measured else None


def _result(run: Prepared, ended: Ended, interrupt: Interrupt) -> Result:
    """The last or the best iterate, its certificate, and what the run cost."""
    log, state = run.log, ended.state
    certify = run.options.certify and not interrupt.again
    done, certificate = ended.step - ended.begin, ended.certificate
    notes = [] if run.saver is None else list(run.saver.notes)
    if run.options.certify and not certify:
        notes.append("the certificate was left out, as Ctrl-C was pressed twice")
    for level, count in run.prefetcher.left_out.items():
        if count:
            notes.append(f"{count} smaller batches of Data.{level} were left out")
    if run.resumed:
        rest = f"{done} steps were left to do" if done else "nothing was left to do"
        notes.append(f"resumed from step {ended.begin}; {rest}")
    if log.kept is not None and log.best is not None:
        notes.append(f"kept the iterate with {log.best.metric} = {log.kept.value:.6g}")
    if log.kept is not None:
        x, y = log.kept.x, log.kept.y
    else:
        x, y = state.x, state.y
    if run.options.answer and run.whole:
        y = run.certifier.answer(x, y)
    if certify and (log.kept is not None or y is not state.y):
        certificate = run.certifier(x, y, None)
    elif certify and certificate is None:
        certificate = run.certifier.of(state)
    if certificate is not None and not run.whole:
        notes.append("the certificate was computed on one batch, as the data have no full one")
    price, running = run.method.price(run.problem), ended.seconds - ended.compiling
    idle = ended.outcome in (Outcome.STALLED, Outcome.FINISHED) and ended.exhausted
    if idle and _is_stationary(certificate):
        ended = ended._replace(outcome=Outcome.CONVERGED)
    status = Status(ended.outcome, _advice(run, ended))
    violated = run.certifier.violated(x, y, certificate) if certify and status.ok else None
    if violated is not None:
        status = Status(Outcome.INFEASIBLE, _infeasible(violated, ended.step))
    notes += run.certifier.notes
    return Result(
        x=x,
        y=y,
        history=log.history(),
        status=status,
        certificate=certificate,
        state=state,
        stats=Stats(
            steps=done,
            seconds=ended.seconds,
            compile_seconds=ended.compiling,
            steps_per_second=done / running if done and running > 0 else float("nan"),
            price=type(price)(*(done * calls for calls in price)),
            samples=run.prefetcher.consumed(done),
            notes=tuple(notes),
        ),
    )


def _advice(run: Prepared, ended: Ended) -> str:
    """What happened and what to try; a loss that was never finite is not the steps' fault."""
    state, outcome, step = ended.state, ended.outcome, ended.step
    if ended.failed is not None:
        told = str(ended.failed).strip().split("\n")[0][:300]
        return (
            f"the data could not be read after step {step} ({type(ended.failed).__name__}: "
            f"{told}); the result holds that step."
        )
    if outcome is Outcome.DIVERGED:
        for level in ("upper", "lower"):
            value = getattr(run.problem, level)(state.x, state.y, getattr(run.first, level))
            if not np.isfinite(value):
                return (
                    f"the {level} loss is {float(value)} at the iterate of step {step}, so no step "
                    "size helps: look for infinities in the data, or logarithms and divisions of 0."
                )
    return advice(outcome, run.method, step, run.log.last, exhausted=ended.exhausted)


def _infeasible(violated: float, step: int) -> str:
    return (
        f"a constraint is violated by {violated:.3g} at the iterate of step "
        f"{step}. If the set is not empty, more steps, a larger penalty or smaller steps of x "
        "get closer to it."
    )
