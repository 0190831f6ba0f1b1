"""The front door: chunks of a compiled loop, and a look from the host in between."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import certificates, sharding, trees
from bilevel.certificates import Certificate
from bilevel.data import Data, Feed
from bilevel.driver import validate
from bilevel.driver.checkpoint import Checkpoint, Saver, fingerprint
from bilevel.driver.choose import check_alone, choose, is_small, whole
from bilevel.driver.interrupt import Interrupt
from bilevel.driver.log import OWN_COLUMNS, Log, Metrics, as_best
from bilevel.driver.progress import watch
from bilevel.driver.pull import Puller
from bilevel.driver.result import Best, Outcome, Result, SolveError, Stats, Status, advice
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, RandomKey, Upper

Callback = Callable[[int, State, Mapping[str, float]], Any]


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
) -> Result:
    """Solve a bilevel problem: `steps` updates of the upper variable by a method.

    Without a method one is chosen by what the problem declares and a look at its curvature
    (`choose` says how), and the status tells which and why. A problem with constraints and at most
    40 variables is searched globally instead; the certificate then says how far y is from the
    follower's best answer.

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

    Returns:
        `Result`. A run that diverges ends within one chunk, with the last finite iterate.

    Raises:
        TypeError, ValueError: a wrong use, in one sentence, before anything compiles.

    On several devices: put x0, y0 or the rows of the data on a mesh, and all else follows. Over
    several processes, each makes the same call; the first one shows progress, and a checkpoint's
    folder is one that all of them see.
    """
    validate.check_steps(steps=steps, log_every=log_every)
    if method is None:
        own = {"metrics": metrics, "callbacks": tuple(callbacks), "checkpoint": checkpoint}
        settings = own | {
            "steps": steps, "key": key, "tol": tol, "log_every": log_every, "progress": progress,
            "keep": keep, "certify": certify,
        }  # fmt: skip
        result = _solve_chosen(problem, x0, y0, data, state, own, settings)
        if throw and not result.status.ok:
            raise SolveError(result)
        return result
    validate.check_method(method, problem)
    callbacks = tuple(callbacks)
    validate.check_arguments(data, key, callbacks)
    best = as_best(keep, metrics)
    key = jax.random.key(0) if key is None else key
    method_key, data_key = jax.random.split(key)
    state = _start(problem, method, x0, y0, state, method_key)
    data = Data() if data is None else data
    validate.check_blocks(method, problem, data)
    puller = Puller(data, data_key, method.draws(problem))
    mesh = sharding.mesh_of((state, puller.resident, puller.first))
    state = sharding.settle(state, mesh, beside=(state.x, state.y))
    placed: tuple[Problem, AbstractMethod] = sharding.settle((problem, method), mesh)
    problem, method = placed
    validate.check_losses(problem, state, puller.first)
    validate.check_some_blocks(problem, state, puller.first, data)
    method.check_parts(puller.example.parts)
    reports = validate.check_step(method, problem, state, puller.example)
    validate.check_metrics(metrics, state.x, state.y, taken=(*OWN_COLUMNS, *reports))

    log = Log(method.price(problem).gradients(), metrics, best, state)
    loop = _Loop(problem, method, reports, sharding.places(state))
    certifier = _Certifier(problem, data.full or puller.first)
    target, saver, resumed = int(state.k) + steps, None, False
    if checkpoint is not None:
        code = problem, method, state, puller.example, data.content, key
        saver = Saver(checkpoint, fingerprint(*code) | {"keep": str(best)})
        if found := saver.restore((state, log.kept)):
            (state, kept), resumed = found.tree, True
            log.resume(found.rows, kept)
    begin = step = int(state.k)
    puller.start(step, skip=step if resumed else 0)
    if not log.rows:
        log.add(step, state, {})
    outcome = certificate = None
    together = True
    first = 0, 0.0  # steps of the first chunk, and when it was back

    with Interrupt() as interrupt, watch(progress, type(method).__name__, step, target) as bar:
        bar.update(step, log.last)
        try:
            if tol > 0 and resumed:
                certificate = certifier.of(state)
                outcome = Outcome.CONVERGED if certificate.stationarity <= tol else None
            while outcome is None and step < target:
                n = min(log_every, target - step)
                feed, n = puller.pull(n, following=min(log_every, target - step - n))
                if n == 0:
                    outcome = Outcome.OUT_OF_DATA
                    break
                state, info, finite = loop(state, feed, n)
                first = first if first[0] else (n, log.seconds)
                if not finite:
                    outcome = Outcome.DIVERGED
                    break
                step += n
                row = log.add(step, state, info)
                bar.update(step, row)
                if saver is not None:
                    saver.save(step, (state, log.kept), log.rows)
                if tol > 0:
                    certificate = certifier.of(state)
                    outcome = Outcome.CONVERGED if certificate.stationarity <= tol else None
                # The loop takes the state over; what a callback keeps must stay readable.
                asked = [callback(step, trees.copy(state), row) for callback in callbacks]
                stopped, pressed = sharding.any_process((any(asked), interrupt.pressed))
                if stopped:
                    outcome = Outcome.STOPPED
                if pressed:
                    outcome = Outcome.INTERRUPTED
        except BaseException as error:
            # Pressed again: a chunk may hold the state.
            if interrupt.pressed or not isinstance(error, KeyboardInterrupt):
                together = jax.process_count() == 1  # others cannot know that this one ends here
                raise
            outcome = Outcome.INTERRUPTED
        finally:
            puller.close()
            if saver is not None:
                if together:
                    saver.save(step, (state, log.kept), log.rows, last=True)
                saver.close()

    seconds, done = log.seconds, step - begin
    outcome = Outcome.FINISHED if outcome is None else outcome
    notes = [] if saver is None else list(saver.notes)
    if resumed:
        rest = f"{done} steps were left to do" if done else "nothing was left to do"
        notes.append(f"resumed from step {begin}; {rest}")
    if log.kept is not None and best is not None:
        notes.append(f"kept the iterate with {best.metric} = {log.kept.value:.6g}")
    if log.kept is not None:
        x, y = log.kept.x, log.kept.y
        certificate = certifier(x, y, None) if certify else None
    else:
        x, y = state.x, state.y
        certificate = certifier.of(state) if certify and certificate is None else certificate
    if certificate is not None and data.full is None:
        notes.append("the certificate was computed on one batch, as the data have no full one")
    price, (first_steps, first_seconds) = method.price(problem), first
    result = Result(
        x=x,
        y=y,
        history=log.history(),
        status=Status(outcome, _advice(outcome, problem, method, state, step, log, puller.first)),
        certificate=certificate,
        state=state,
        stats=Stats(
            steps=done,
            seconds=seconds,
            compile_seconds=first_seconds,
            steps_per_second=(done - first_steps) / (seconds - first_seconds)
            if done > first_steps
            else float("nan"),
            price=type(price)(*(done * calls for calls in price)),
            samples=puller.consumed(done),
            notes=tuple(notes),
        ),
    )
    if throw and not result.status.ok:
        raise SolveError(result)
    return result


def _solve_chosen(problem, x0, y0, data, state, own, settings) -> Result:
    """By a method that is chosen here, or the global search."""
    from bilevel.driver.small import check_small, solve_small  # brings scipy.optimize: seconds

    if state is not None:
        raise ValueError("state belongs to a method: give the method that made it, too.")
    validate.check_problem(problem)
    validate.check_arguments(data, settings["key"], settings["callbacks"])
    _check_start(problem, x0, y0)
    choice = choose(problem, x0, y0, data=data, key=settings["key"])
    batch = whole(data)
    if choice.method is not None:
        result = solve(problem, choice.method, x0, y0, data=data, **settings)
        status = result.status._replace(advice=f"{choice.why}. {result.status.advice}")
        result = result._replace(status=status)
        diverged = result.status.outcome is Outcome.DIVERGED
        ended = result.status.ok or diverged
        if not (ended and settings["certify"] and is_small(problem, x0, y0, data)):
            return result
        proof = check_small(problem, result.x, result.y, batch)
        if (proof.ok and not diverged) or any(own.values()):
            return result._replace(certificate=proof._replace(local=result.certificate))
        found = "diverged" if diverged else "ended where the follower has a better answer"
        choice = choice._replace(
            why=f"{choice.why}; it {found}, so the global search for small problems came after it"
        )
    check_alone(**{name: bool(value) for name, value in own.items()})
    return solve_small(problem, x0, y0, batch, why=choice.why)


class _Loop:
    """The compiled loop of one method on one problem, called chunk by chunk.

    Arguments are flattened once, and what a chunk reports comes back as one array: a short chunk
    should cost the host little more than a dispatch and a read.
    """

    def __init__(self, problem: Problem, method: AbstractMethod, reports: list[str], places):
        self._fixed, self._treedef = jax.tree.flatten((problem, method))
        self._names, self._places = reports, places

    def __call__(self, state: Any, feed: Feed, n: int) -> tuple[Any, dict[str, float], bool]:
        """The state n steps on, what the last step reported, and whether all is finite.

        The state given is donated; it comes back unchanged when the steps left the finite numbers.
        """
        fixed = self._treedef, self._places
        state, report = _advance(*fixed, self._fixed, feed, np.int32(n), state)
        *values, finite = np.asarray(report)
        return state, dict(zip(self._names, map(float, values), strict=True)), bool(finite)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _advance(treedef, places, fixed, feed: Feed, n, state):
    problem, method = jax.tree.unflatten(treedef, fixed)

    def one(state):
        state, info = method.step(problem, state, feed.batch(state.k))
        return sharding.pin(state, places), _stacked(info)

    blank = jax.eval_shape(lambda: one(state)[1])
    start = state, jnp.zeros(blank.shape, blank.dtype)
    new, report = jax.lax.fori_loop(0, n, lambda _, carry: one(carry[0]), start)
    finite = trees.all_finite((new, report))
    report = jnp.append(report, finite.astype(report.dtype))
    new = sharding.pin(trees.where(finite, new, state), places)
    return new, sharding.pin_everywhere(report, places)


def _stacked(info: Mapping[str, Any]) -> Array:
    """What a step reports, by name, as one vector."""
    return jnp.array([jnp.asarray(info[name]).astype(float) for name in sorted(info)], float)


@jax.jit
def _certify(problem: Problem, x: Upper, y: Lower, v: Lower | None, batch: Batch) -> Certificate:
    return certificates.certify(problem, x, y, batch, v=v)


class _Certifier:
    """Certificates on one batch, which is the whole data where there is a whole."""

    def __init__(self, problem: Problem, batch: Batch):
        self._problem, self._batch = problem, Batch(batch.upper, batch.lower)

    def __call__(self, x: Upper, y: Lower, v: Lower | None) -> Certificate:
        return jax.device_get(_certify(self._problem, x, y, v, self._batch))

    def of(self, state: State) -> Certificate:
        """Of a state, the adjoint it tracks included."""
        return self(state.x, state.y, getattr(state, "v", None))


def _advice(outcome, problem, method, state, step: int, log: Log, batch: Batch) -> str:
    """What happened and what to try; a loss that was never finite is not the steps' fault."""
    if outcome is Outcome.DIVERGED:
        for level in ("upper", "lower"):
            value = getattr(problem, level)(state.x, state.y, getattr(batch, level))
            if not np.isfinite(value):
                return (
                    f"the {level} loss is {float(value)} at the iterate of step {step}, so no step "
                    "size helps: look for infinities in the data, or logarithms and divisions of 0."
                )
    return advice(outcome, method, step, log.last)


def _start(problem, method, x0, y0, state, key) -> Any:
    """A fresh state from starting points that were looked at, or a copy of the one given."""
    if state is not None:
        if x0 is not None or y0 is not None:
            raise ValueError("give x0 and y0, or state, not both.")
        validate.check_state(state)
        return trees.copy(state)
    _check_start(problem, x0, y0)
    return method.init(problem, x0, y0, key=key)


def _check_start(problem, x0, y0) -> None:
    for name, value in (("x0", x0), ("y0", y0)):
        if value is None:
            raise ValueError(f"{name} is missing: give x0 and y0, or state.")
        validate.check_variable(name, value)
    validate.check_rows(problem, y0)
    validate.check_sets(problem, x0, y0)
