"""A race where theory does not decide: several methods, several step sizes, one of them kept."""

import dataclasses
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import effort, jobs, trees
from bilevel.certificates import Probe, probe
from bilevel.data import Data, Feed, on_parts
from bilevel.driver.run import run
from bilevel.driver.validate import (
    check_arguments,
    check_each_loss,
    check_steps,
    check_variable,
)
from bilevel.errors import Refused
from bilevel.lower import NewtonCG
from bilevel.methods import MAID
from bilevel.methods.base import AbstractMethod, LowerAssumption, Unsupported, all_methods
from bilevel.problem import Draws, Problem, Structure
from bilevel.selection.judge import Judge, judge_of
from bilevel.selection.tune import multiplied
from bilevel.sets import Free
from bilevel.typing import Lower, RandomKey, Upper
from bilevel.updates import AbstractUpdate

X_FACTORS = tuple(float(f) for f in np.geomspace(0.01, 10, 4))
LOWER_FACTORS = (0.1, 1.0)
AROUND = tuple((p, q) for p in (0.2, 0.5, 2.0, 5.0) for q in (0.3, 1.0))  # of the winner's factors
MOST_METHODS = 6  # that enter a race, when none are named


class Entrant(NamedTuple):
    """One method with one setting of its steps."""

    method: AbstractMethod
    steps: int  # made before it was left behind, or until the end
    score: float  # upper loss at x with y solved for, less is better; infinite if it diverged


class Race(NamedTuple):
    """The method that won, with its steps, and everyone's numbers."""

    method: AbstractMethod
    entrants: tuple[Entrant, ...]  # the best of each method, the winner first
    left_out: tuple[str, ...]  # sentences: which methods did not start, and why
    start: float = math.nan  # the score of the start

    def __str__(self) -> str:
        rows = [f"{one.score:14.6g} {one.steps:7d}  {one.method!r}" for one in self.entrants]
        return "\n".join([f"{'upper loss':>14} {'steps':>7}  method", *rows, *self.left_out])


def race(
    problem: Problem,
    x0: Upper,
    y0: Lower,
    *,
    data: Data | None = None,
    methods: Sequence[type[AbstractMethod] | AbstractMethod] | None = None,
    key: RandomKey | None = None,
    steps: int = 50,
    until: int = 0,
    seconds: float = 60.0,
    executor: Executor | None = None,
) -> Race:
    """The method that does best on this problem: `race(problem, x0, y0, data=data).method`.

    Every method starts with the steps of its theory where `certificates.probe` finds the constants
    (with its default steps where not) and eight multiples of them, all in one compilation. Each
    round runs them further, twice as long as the round before, and the worse half of the methods is
    left behind, until one remains. Whoever leads then goes on until it has made `until` steps; one
    that gets worse on the way falls behind, and the next takes its place. At last it tries steps
    around its best. Trials are judged by the upper loss at their x, with the lower problem solved
    accurately anew (by a problem's own `lower_step`: 200 steps), never by a method's own estimate.
    `solve` with the same key draws the same samples as the race.

    Args:
        x0, y0: any pytrees of floating arrays.
        data: arrays or samplers, as for `bl.run`.
        methods: classes, or methods with settings of their own; when absent, at most six that
            handle the problem: MAID where it does, then by what they assume and cost.
        key: draws the samples and starts the methods.
        steps: of the first round.
        until: steps that the winner has made at the end, where time is left for them: give the
            length of the run that the method is chosen for, as steps that are best at first may be
            too long later.
        seconds: no further method starts after half of this time, and no further round after it. A
            method takes 3 to 10 seconds to compile. On a machine that is busy with other work, and
            without an executor, seconds of the processor count.
        executor: runs the methods of a round at once, each as a job; any of `concurrent.futures`,
            or with its `submit`. The jobs and what they return are pickled where processes run
            them.

    Returns:
        `Race(method, entrants, left_out)`; printing it gives the table.

    Raises:
        TypeError: the data are streams, or the executor is none.
        ValueError: no method handles the problem, or every setting diverged.
    """
    check_steps(steps=steps)
    check_arguments(data, key, ())
    jobs.check_executor(executor)
    for name, tree in (("x0", x0), ("y0", y0)):
        check_variable(name, tree)
    data = Data() if data is None else data
    if data.streams:
        raise TypeError("race draws the same samples many times: give Data arrays or a sampler.")
    begin, key = (time.monotonic(), time.process_time()), jax.random.key(0) if key is None else key
    problem = on_parts(problem, data.feed(key, Draws(1, 1)))
    judge = judge_of(data, key)
    check_each_loss(problem, x0, y0, judge.one)
    look = _constants(problem, x0, y0, judge)
    ready, left_out = [], []
    for method in able(problem, data, look) if methods is None else methods:
        try:
            ready.append(_Lanes.of(method, problem, x0, y0, data, key, look))
        except (ValueError, NotImplementedError) as error:
            name = getattr(method, "__name__", type(method).__name__)
            left_out.append(f"{name} did not start: {error}")

    def spent() -> float:
        """Seconds of work: on a busy machine those of the processor, which are fewer."""
        wall, work = time.monotonic() - begin[0], time.process_time() - begin[1]
        return wall if executor is not None else min(wall, work)

    def further(lanes: Sequence[_Lanes], latest: float) -> list[_Lanes]:
        """A round; without an executor no further method starts after the latest time."""
        job, ran = partial(_Lanes.further, problem=problem, judge=judge, steps=steps), []
        for one in jobs.each(job, lanes, executor):
            ran.append(one)
            if executor is None and spent() > latest:
                break
        return ran

    running = further(ready, seconds / 2)
    late = f"did not start: half of the {seconds:g} seconds were over; give more."
    left_out += [f"{type(lanes.base).__name__} {late}" for lanes in ready[len(running) :]]
    ended: list[_Lanes] = []
    while len(running) > 1 and spent() < seconds:
        running.sort(key=lambda lanes: lanes.best.score)
        half = -(-len(running) // 2)
        ended, running = running[half:] + ended, running[:half]
        steps *= 2
        running = further(running, math.inf)
    every = running + ended
    while every and spent() < seconds:
        every.sort(key=lambda lanes: lanes.best.score)
        leader = every[0]
        if leader.done >= until or not math.isfinite(leader.best.score):
            break
        steps = min(leader.done, until - leader.done)  # twice as far
        every[0] = leader.further(problem, judge, steps)
    if until and every and spent() < seconds / 2:
        every[0] = every[0].refined(problem, judge)
    every.sort(key=lambda lanes: lanes.best.score)
    best = tuple(lanes.best for lanes in every)
    if not best or not math.isfinite(best[0].score):
        raise Refused(
            " ".join(["no method got anywhere on this problem within the race.", *left_out])
        )
    return Race(best[0].method, best, tuple(left_out), score(problem, judge, x0, y0))


def able(problem: Problem, data: Data, look: Probe | None) -> list[type[AbstractMethod]]:
    """Methods that handle a problem and can race, those likeliest to do well first.

    MAID comes first, which finds its own steps, then those whose theory tells steps; those that
    assume most where the lower loss is strongly convex (`look` says so), elsewhere those that
    assume least.

    Raises:
        Unsupported: there are none.
    """
    noisy = (data.batches.upper, data.batches.lower) != (1, 1)
    needs = {Structure.BLOCKS} if data.blocks is not None else set()
    found = [
        method
        for method in all_methods()
        if method.__module__.startswith("bilevel.")
        and not method.unsupported(problem)
        and needs <= method.supports
        and (method.samples or not noisy)
        and _default(method) is not None
    ]
    if not found:
        raise Unsupported("no method of bilevel handles all that this problem declares.")
    weakest = list(LowerAssumption)

    def rank(method: type[AbstractMethod]):
        untold = method.theory.__func__ is AbstractMethod.theory.__func__
        least = weakest.index(method.below) * (1 if look is not None else -1)
        return method is not MAID, untold, least, _cost(method, problem)

    return sorted(found, key=rank)[:MOST_METHODS]


def _default(method: type[AbstractMethod]) -> AbstractMethod | None:
    """The method as it is made without arguments, where it can be."""
    try:
        return method()
    except TypeError:
        return None


def _moves(method: AbstractMethod) -> bool:
    """Whether it has steps to choose."""
    fields = (getattr(method, field.name) for field in dataclasses.fields(method))
    return any(isinstance(field, AbstractUpdate) for field in fields)


def _cost(method: type[AbstractMethod], problem: Problem) -> float:
    return method().price(problem).gradients()


def _constants(problem: Problem, x: Upper, y: Lower, judge: Judge) -> Probe | None:
    """What theories ask for, where y is free and the lower loss strongly convex."""
    if not isinstance(problem.lower_set, Free):
        return None
    y = _near_answer(problem, x, y, judge.one.lower)
    look = probe(problem, x, y, judge.one)
    return look if math.isfinite(look.condition) else None


@effort.briefly
def _near_answer(problem: Problem, x: Upper, y: Lower, batch) -> Lower:
    return NewtonCG(1e-4, max_steps=500).solve(problem, x, y, batch).y


class _Lanes(NamedTuple):
    """One method with many steps, all run together."""

    base: AbstractMethod
    grid: np.ndarray  # (lanes, 2): factors of x steps and of all others
    start: Any  # states of no steps, on a leading axis
    states: Any  # on a leading axis
    feed: Feed
    done: int
    scores: np.ndarray  # (lanes,)

    @classmethod
    def of(cls, method, problem, x0, y0, data: Data, key, look: Probe | None) -> "_Lanes":
        base = (method if isinstance(method, AbstractMethod) else _based(method, look)).for_data(
            data.batches
        )
        base.check(problem)
        every = [(p, q) for p in X_FACTORS for q in LOWER_FACTORS]
        factors = every if _moves(base) else [(1.0, 1.0)]
        method_key, data_key = jax.random.split(key)  # as `solve` does
        state = base.init(problem, x0, y0, key=method_key)
        states = trees.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(factors), *jnp.shape(leaf))), state
        )
        feed = data.feed(data_key, base.draws(problem))
        base.check_parts(feed.parts)
        scores = np.full(len(factors), np.inf)
        return cls(base, np.array(factors), states, states, feed, 0, scores)

    def further(self, problem: Problem, judge: Judge, steps: int) -> "_Lanes":
        states = self.states
        parts = max(1, -(-steps // PART))
        for _ in range(parts):
            states = _run(self.base, problem, states, self.feed, jnp.asarray(self.grid), PART)
        scores = np.asarray(_values(problem, judge, states.x, states.y))
        scores = np.where(np.isfinite(scores), scores, np.inf)
        return self._replace(states=states, scores=scores, done=self.done + parts * PART)

    def refined(self, problem: Problem, judge: Judge) -> "_Lanes":
        """Lanes around the best one, which have made as many steps, if one of them does better."""
        if len(self.grid) != LANES:
            return self
        around = self.grid[np.argmin(self.scores)] * np.array(AROUND)
        fresh = self._replace(grid=around, states=self.start, done=0)
        fresh = fresh.further(problem, judge, self.done)
        return fresh if fresh.best.score < self.best.score else self

    @property
    def best(self) -> Entrant:
        i = int(np.argmin(self.scores))
        method = multiplied(self.base, *map(float, self.grid[i]))
        return Entrant(method, self.done, float(self.scores[i]))


PART = 50  # steps of one compiled program, so that every round runs the same
LANES = len(X_FACTORS) * len(LOWER_FACTORS)


def score(problem: Problem, judge: Judge, x: Upper, y: Lower) -> float:
    """The upper loss at x with the lower problem solved anew from y, as a race judges its trials.

    As many copies as a race has lanes go through the program that judged those.
    """
    many = trees.map(lambda leaf: jnp.broadcast_to(leaf, (LANES, *jnp.shape(leaf))), (x, y))
    return float(_values(problem, judge, *many)[0])


def _based(method: type[AbstractMethod], look: Probe | None) -> AbstractMethod:
    if look is not None:
        try:
            return method.theory(look)
        except NotImplementedError:
            pass
    return method()


@effort.briefly
def _run(base, problem: Problem, states, feed: Feed, grid, steps: int):
    def one(state, factors):
        method = multiplied(base, factors[0], factors[1])
        return run(problem, method, state, data=feed, steps=steps)[0]

    return jax.vmap(one)(states, grid)


@effort.briefly
def _values(problem: Problem, judge: Judge, x, y):
    def one(x, y):
        x = problem.upper_set.project(x) if problem.upper_set.projectable else x
        return judge.value(problem, x, judge.solved(problem, x, y))

    return jax.vmap(one)(x, y)
