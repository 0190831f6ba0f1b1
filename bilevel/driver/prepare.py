"""Before the first chunk: every check, once, and all that the chunks need."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bilevel import certificates, effort, jaxprs, sharding, trees
from bilevel.certificates import Certificate, measures
from bilevel.data import Data, on_parts
from bilevel.driver import validate
from bilevel.driver.checkpoint import Checkpoint, Saver
from bilevel.driver.chunks import Loop, StepByStep
from bilevel.driver.convolutions import avoid_loops
from bilevel.driver.fingerprint import fingerprint, settings
from bilevel.driver.log import OWN_COLUMNS, Log, Metrics, as_best
from bilevel.driver.prefetch import Prefetcher
from bilevel.driver.programs import program
from bilevel.driver.result import Best
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, RandomKey, Upper

Callback = Callable[[int, State, Mapping[str, float]], Any]


class Options(NamedTuple):
    """How a run goes; `bilevel.solve` says what each means."""

    data: Data | None = None
    steps: int = 1000
    key: RandomKey | None = None
    tol: float = 0.0
    log_every: int = 100
    metrics: Metrics | None = None
    callbacks: Iterable[Callback] = ()
    checkpoint: Checkpoint | str | Path | None = None
    progress: bool | None = None
    keep: str | Best = "last"
    certify: bool = True
    answer: bool = (
        False  # y is solved for anew at the last x, on all data; not an option of `solve`
    )
    brief: bool = False  # the steps are few: little effort is made to compile them; likewise


class Prepared(NamedTuple):
    """A run that has been checked, at the step where it begins."""

    problem: Problem  # on the mesh of the run
    method: AbstractMethod
    state: Any
    options: Options
    prefetcher: Prefetcher
    loop: Loop | StepByStep
    log: Log
    certifier: "Certifier"
    saver: Saver | None
    target: int  # step at which the run ends
    resumed: bool  # from a checkpoint

    @property
    def whole(self) -> bool:
        """Whether the certifier sees all data."""
        return self.options.data is None or self.options.data.full is not None

    @property
    def first(self) -> Batch:
        """The batch of the first step."""
        return self.prefetcher.first


def prepare(
    problem: Problem,
    method: AbstractMethod,
    x0: Upper,
    y0: Lower,
    state: Any,
    options: Options,
    waiting: Callable = nullcontext,
) -> Prepared:
    """Check everything, start the state or restore it, and lay it on the mesh.

    `waiting()` is entered where a loader may block.

    Raises:
        TypeError, ValueError: a wrong use, in one sentence, before anything compiles.
    """
    validate.check_method(method, problem)
    options = options._replace(callbacks=validate.as_callbacks(options.callbacks))
    validate.check_options(options)
    content = options.data and options.data.content
    validate.check_concrete(problem, method, x0, y0, state, options.key, content)
    best = as_best(options.keep, options.metrics)
    key = jax.random.key(0) if options.key is None else options.key
    method_key, data_key = jax.random.split(key)
    data = Data() if options.data is None else options.data
    method = method.for_data(data.batches)
    state, start = _start(problem, method, x0, y0, state, method_key)
    validate.check_blocks(method, problem, data)
    prefetcher = Prefetcher(data, data_key, method.draws(problem), waiting)
    problem = on_parts(problem, prefetcher.resident)
    mesh = sharding.mesh_of((state, prefetcher.resident, prefetcher.first))
    state = sharding.replicate_on(state, mesh, beside=(state.x, state.y))
    placed: tuple[Problem, AbstractMethod] = sharding.replicate_on((problem, method), mesh)
    problem, method = placed
    validate.check_losses(problem, state, prefetcher.first)
    validate.check_some_blocks(problem, state, prefetcher.first, data)
    method.check_parts(prefetcher.example.parts)
    reports, jaxpr = validate.check_step(method, problem, state, prefetcher.example)
    validate.check_metrics(options.metrics, state.x, state.y, taken=(*OWN_COLUMNS, *reports))

    log = Log(method.price(problem).gradients(), reports, options.metrics, best, state)
    chunks = StepByStep if avoid_loops(jaxpr, state) else Loop
    little = None
    if options.brief:
        more = jaxprs.closed_over(jaxpr.jaxpr)
        little = effort.options(problem, state, prefetcher.first, more=more)
    loop = chunks(problem, method, reports, sharding.shardings_of(state), little)
    certifier = Certifier(problem, data.full or prefetcher.first)
    target, saver, resumed = int(state.k) + options.steps, None, False
    if options.checkpoint is not None:
        code = problem, method, state, prefetcher.example, prefetcher.first
        parts = fingerprint(*code, content=data.content, key=key, start=start)
        checkpoint = validate.as_checkpoint(options.checkpoint)
        saver = Saver(checkpoint, parts | {"keep": str(best)}, settings(method))
        if found := saver.restore((state, log.kept)):
            (state, kept), resumed = found.tree, True
            log.resume(found.rows, kept)
    options = options._replace(data=data)
    return Prepared(
        problem, method, state, options, prefetcher, loop, log, certifier, saver, target, resumed
    )


def _answer(problem: Problem, x: Upper, y: Lower, batch) -> Lower:
    return measures.solve(problem, x, y, batch).y


def _certify(problem: Problem, x: Upper, y: Lower, v: Lower | None, batch: Batch) -> Certificate:
    return certificates.certify(problem, x, y, batch, v=v)


class Certifier:
    """Certificates on one batch, which is the whole data where there is a whole.

    One that cannot be made is `None` and a note: it must not cost the run that it is about.
    """

    def __init__(self, problem: Problem, batch: Batch):
        self._problem, self._batch = problem, Batch(batch.upper, batch.lower)
        self.notes: list[str] = []

    def __call__(self, x: Upper, y: Lower, v: Lower | None) -> Certificate | None:
        try:
            args = self._problem, x, y, v, self._batch
            measured = program(self._problem, _certify, compiler_options=effort.options(args))
            return jax.device_get(measured(*args))
        except Exception as error:
            self.notes = [f"no certificate could be computed: {_told(error)}"]
            return None

    def violated(self, x: Upper, y: Lower, certificate: Certificate | None) -> float | None:
        """By how much a constraint is violated, if it is; measured where no certificate says it."""
        if certificate is not None:
            return None if certificate.feasible else float(certificate.violation)
        try:
            worst, feasible = jax.jit(measures.feasible)(self._problem, x, y)
        except Exception as error:
            self.notes.append(f"the constraints could not be looked at: {_told(error)}")
            return None
        return None if feasible else float(worst)

    def answer(self, x: Upper, y: Lower) -> Lower:
        """The lower solution at x, from y; y itself where nothing here solves for it."""
        if not measures.can_solve(self._problem, y):
            return y
        args = self._problem, x, y, self._batch.lower
        solved = program(self._problem, _answer, compiler_options=effort.options(args))(*args)
        return solved if trees.all_finite(solved) else y

    def of(self, state: State) -> Certificate | None:
        """Of a state, the adjoint it tracks included."""
        return self(state.x, state.y, getattr(state, "v", None))


def _told(error: Exception) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"


def _start(problem, method, x0, y0, state, key) -> tuple[Any, Any]:
    """A state, and the points where it began: those given, looked at, or those of a given state."""
    if state is not None:
        if x0 is not None or y0 is not None:
            raise ValueError("give x0 and y0, or state, not both.")
        validate.check_state(state)
        return trees.copy(state), (state.x, state.y, state.k)
    x0, y0 = validate.check_start(problem, x0, y0)
    return method.init(problem, x0, y0, key=key), (x0, y0)
