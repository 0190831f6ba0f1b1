"""Step sizes that suit a problem: the theory's scales, then a short race."""

import dataclasses
import itertools
import math
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import effort, jobs, oracles, trees
from bilevel.certificates import Probe, probe
from bilevel.data import Data, Feed, on_parts
from bilevel.driver.run import run
from bilevel.driver.validate import (
    check_arguments,
    check_each_loss,
    check_method,
    check_steps,
    check_variable,
)
from bilevel.errors import Refused
from bilevel.methods.base import AbstractMethod
from bilevel.problem import Draws, Problem
from bilevel.selection.ahead import measured_ahead
from bilevel.selection.judge import Judge, draws, judge_of
from bilevel.typing import RandomKey
from bilevel.updates import AbstractUpdate, scaled

X_FACTORS = tuple(float(f) for f in np.geomspace(0.01, 10, 7))
LOWER_FACTORS = (0.1, 0.3, 1.0)
PARTS = 5  # of a trial; the worst score after the last three counts, so a growing swing loses
JUDGED = 3
MOST_CONDITION = 30.0  # more lower steps than this a step, the race does not try


class Trial(NamedTuple):
    """One setting of the race."""

    x_factor: float  # of the theory's x steps
    lower_factor: float  # of the theory's steps on y and its companions
    score: float  # upper loss at x with y solved for; infinite where the run diverged


class Tuned(NamedTuple):
    """A method whose steps suit a problem, and how they were found."""

    method: Any
    trials: tuple[Trial, ...]  # the best first
    probe: Probe  # the curvature at the start

    def __str__(self) -> str:
        rows = [f"{p:10.3g} {q:10.3g} {score:14.6g}" for p, q, score in self.trials]
        head = f"{'x factor':>10} {'y factor':>10} {'upper loss':>14}"
        return "\n".join([repr(self.method), head, *rows])


def tune(
    method: type[AbstractMethod],
    problem: Problem,
    x0: Any,
    y0: Any,
    *,
    data: Data | None = None,
    key: RandomKey | None = None,
    steps: int = 300,
    x_factors: tuple[float, ...] = X_FACTORS,
    lower_factors: tuple[float, ...] = LOWER_FACTORS,
    executor: Executor | None = None,
    **settings: Any,
) -> Tuned:
    """A method with step sizes for this problem: `tune(bl.methods.SOBA, problem, x0, y0)`.

    Measures curvature at x0 and the lower solution there (`certificates.probe`), and that of the
    hyper-objective where its first directions lead; takes the decaying schedules of the method's
    theory, and races multiples of them for `steps` steps, all settings in one compilation. Each is
    judged by the upper loss at its x with the lower problem solved anew, the worst of a few looks
    in the second half. While the best x factor is the largest or smallest one tried, the race goes
    on beyond it, until twice as many were raced; where the next larger one diverged, half the best
    is returned. (Best sizes of public problems span three orders of magnitude.)

    Args:
        x0, y0: any pytrees of floating arrays.
        data: arrays or samplers, as for `bl.run`.
        key: draws the samples and starts the methods.
        steps: of each trial. The race costs `len(x_factors) · len(lower_factors)` such runs, at
            once: that many copies of the method's state are held.
        executor: runs a part of the race for each lower factor, as a job of its own; any of
            `concurrent.futures`, or with its `submit`. Absent, all are one program.
        settings: fields of the method that are not to be the theory's, such as `lower_steps=5`.

    Returns:
        `Tuned(method, trials, probe)`; printing it gives the table of the trials.

    Raises:
        TypeError: the method has no step size for x (MAID finds its own), the data are streams, or
            the executor is none.
        ValueError: the lower loss is not strongly convex at x0, or every trial diverged.
    """
    check_steps(steps=steps)
    check_arguments(data, key, ())
    jobs.check_executor(executor)
    for name, tree in (("x0", x0), ("y0", y0)):
        check_variable(name, tree)
    if "x_update" not in {field.name for field in dataclasses.fields(method)}:
        raise TypeError(f"{method.__name__} has no x_update to tune: it finds its own step sizes.")
    data = Data() if data is None else data
    if data.streams:
        raise TypeError("tune draws the same samples many times: give Data arrays or a sampler.")
    key = jax.random.key(0) if key is None else key
    problem = on_parts(problem, data.feed(key, Draws(1, 1)))

    judge = judge_of(data, key)
    check_each_loss(problem, x0, y0, judge.one)
    y_start = _solved(judge, problem, x0, y0)
    look = probe(problem, x0, y_start, judge.one)
    suited = gentle(look, problem, x0, y_start, draws(data, key).lower, key)
    base = method.theory(
        measured_ahead(suited, judge.mean(problem), x0, y_start, judge.batches, key)
    )
    base = dataclasses.replace(base, **settings) if settings else base
    base = base.for_data(data.batches)
    check_method(base, problem)

    feed = data.feed(key, base.draws(problem))
    state = base.init(problem, x0, y0, key=key)
    trials: list[Trial] = []
    factors = tuple(x_factors)
    parts = [lower_factors] if executor is None else [(q,) for q in lower_factors]
    while factors:
        job = partial(run_trials, base, problem, state, feed, judge, factors, steps=steps)
        trials += itertools.chain.from_iterable(jobs.each(job, parts, executor))
        trials.sort(key=lambda trial: trial.score)
        factors = _beyond(trials) if len(trials) < 2 * len(x_factors) * len(lower_factors) else ()
    best = trials[0]
    if not math.isfinite(best.score):
        smallest = min(trial.x_factor for trial in trials)
        raise Refused(
            f"every setting of {method.__name__} diverged within {steps} steps; the smallest x "
            f"factor tried was {smallest:.2g}. Look at certificates.probe, or start elsewhere."
        )
    return Tuned(multiplied(base, _safe(trials), best.lower_factor), tuple(trials), look)


def _beyond(trials: list[Trial]) -> tuple[float, ...]:
    """Three more x factors where the best one lies at an end of those tried."""
    tried, best = sorted({trial.x_factor for trial in trials}), trials[0].x_factor
    if len(tried) == 1 or best not in (tried[0], tried[-1]):
        return ()
    ratio = tried[1] / tried[0] if best == tried[-1] else tried[0] / tried[1]
    return tuple(best * ratio**i for i in (1, 2, 3))


def _safe(trials: list[Trial]) -> float:
    """The best x factor, or half of it where the next larger one diverged."""
    best = trials[0]
    beside = [trial for trial in trials if trial.lower_factor == best.lower_factor]
    larger = min((trial for trial in beside if trial.x_factor > best.x_factor), default=best)
    return best.x_factor if math.isfinite(larger.score) else best.x_factor / 2


def gentle(look: Probe, problem: Problem, x, y, samples, key: RandomKey) -> Probe:
    """Constants that suit single batches (`samples`, on a leading axis), and short lower loops.

    Raises:
        ValueError: the lower loss is not strongly convex at (x, y).
    """
    if not math.isfinite(look.condition):
        raise Refused(
            f"the lower loss is {look.convexity.value} at the start, and the theory's step sizes "
            "need it strongly convex. Add a ridge on y, or choose step sizes by hand."
        )
    L = max(look.L, float(_sampled_smoothness(problem, x, y, samples, key)))
    return look._replace(L=L, mu=max(look.mu, L / MOST_CONDITION))


def multiplied(method: AbstractMethod, x_factor, lower_factor) -> AbstractMethod:
    """The method with its steps on x, and those on everything else, multiplied."""

    def factor(name: str):
        return x_factor if name == "x_update" else lower_factor

    moved = {
        field.name: scaled(getattr(method, field.name), factor(field.name))
        for field in dataclasses.fields(method)
        if isinstance(getattr(method, field.name), AbstractUpdate)
    }
    return dataclasses.replace(method, **moved)


def run_trials(base, problem, state, feed, judge, x_factors, lower_factors, steps) -> list[Trial]:
    """The race over a grid, in one compilation for each number of trials."""
    grid = np.array([(p, q) for p in x_factors for q in lower_factors])
    scores = np.asarray(_scores(base, problem, state, feed, judge, jnp.asarray(grid), steps))
    scores = np.where(np.isfinite(scores), scores, np.inf)
    return [Trial(float(p), float(q), float(s)) for (p, q), s in zip(grid, scores, strict=True)]


@effort.briefly
def _scores(base, problem, state, feed: Feed, judge: Judge, grid, steps: int):
    def score(factors):
        method = multiplied(base, factors[0], factors[1])

        def part(carry, judged):
            state, y = carry
            state, _ = run(problem, method, state, data=feed, steps=-(-steps // PARTS))
            y = jax.lax.cond(judged, lambda: judge.solved(problem, state.x, y), lambda: y)
            return (state, y), judge.value(problem, state.x, y)

        judged = jnp.arange(PARTS) >= PARTS - JUDGED
        _, values = jax.lax.scan(part, (state, state.y), judged)
        return jnp.max(values, where=judged, initial=-jnp.inf)

    return jax.vmap(score)(grid)


@effort.briefly
def _solved(judge: Judge, problem: Problem, x, y):
    return judge.solved(problem, x, y)


@effort.briefly
def _sampled_smoothness(problem: Problem, x, y, batches, key):
    """The largest curvature of the lower loss on a batch: steps must suit every one of them."""

    def largest(batch):
        def body(v, _):
            product = oracles.hvp(problem, x, y, v, batch)
            size = trees.norm(product)
            return trees.scale(1 / jnp.maximum(size, jnp.finfo(size.dtype).tiny), product), size

        start = trees.random_like(key, y)
        return jax.lax.scan(body, trees.scale(1 / trees.norm(start), start), length=20)[1][-1]

    if batches is None:
        return largest(None)
    return jnp.max(jax.vmap(largest)(batches))
