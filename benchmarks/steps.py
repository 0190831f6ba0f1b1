"""What a step of each method costs, against the same algorithm by hand on the same batches.

`run` is the pure loop under one jit. `solve` is the front door: chunks, and the host looking in;
what a call costs besides its steps is a row of its own. `run` and the loop by hand keep the same
history; the loop by hand without one is told apart.
`python -m benchmarks.steps`.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import bilevel as bl
from benchmarks.harness import Row, Seconds, compare, interleave, main
from benchmarks.reference.f2sa import f2sa
from benchmarks.reference.soba import soba
from benchmarks.reference.stocbio import stocbio
from benchmarks.reference.ttsa import ttsa
from benchmarks.tasks import Task, cleaning, logistic

TARGET = 1.10
RATES = (0.05, 0.1, 0.1)
LOWER_STEPS = TERMS = 10


class Pair(NamedTuple):
    """A method and its counterpart by hand, with the same numbers in both."""

    method: Callable  # rates -> method
    by_hand: Callable
    price: int  # about how many SOBA steps one step costs: cheap methods get more steps


def _ttsa(a, b, c):
    slow, fast = bl.schedules.Polynomial(a, 0.6), bl.schedules.Polynomial(b, 0.4)
    return bl.methods.TTSA(slow, fast, linear=bl.linear.RandomizedNeumann(TERMS, c))


def _stocbio(a, b, c):
    return bl.methods.StocBiO(a, b, linear=bl.linear.Neumann(TERMS, c), lower_steps=LOWER_STEPS)


def _f2sa(a, b, c):
    slow, penalty = bl.schedules.Polynomial(a, 1 / 3), bl.schedules.Polynomial(2.0, -1 / 3)
    return bl.methods.F2SA(slow, b, c, penalty=penalty, lower_steps=LOWER_STEPS)


def _ttsa_by_hand(*args, key, **settings):
    return ttsa(*args, key, terms=TERMS, **settings)


def _stocbio_by_hand(*args, key, **settings):
    return stocbio(*args, terms=TERMS, lower_steps=LOWER_STEPS, **settings)


def _f2sa_by_hand(*args, key, **settings):
    *rest, rates = args
    return f2sa(*rest, (*rates, 2.0), lower_steps=LOWER_STEPS, **settings)


def _soba_by_hand(*args, key, stride, **settings):
    return soba(*args, **settings)


PAIRS = {
    "SOBA": Pair(lambda a, b, c: bl.methods.SOBA(a, b, c), _soba_by_hand, 1),
    "TTSA": Pair(_ttsa, _ttsa_by_hand, 2),
    "StocBiO": Pair(_stocbio, _stocbio_by_hand, 7),
    "F2SA": Pair(_f2sa, _f2sa_by_hand, 7),
}


def of(task: Task, pair: Pair, steps: int, repeats: int) -> list[Row]:
    """One method on one problem: `steps` steps a call, `solve` in chunks of a hundred."""
    keys = jax.random.split(jax.random.key(3), 2)
    problem, method = bl.Problem(task.upper, task.lower), pair.method(*RATES)
    data = bl.Data(upper=task.upper_data, lower=task.lower_data, batch_size=task.batch_size)
    start = method.init(problem, task.x0, task.y0, key=keys[1])
    feed = data.feed(keys[0], method.draws(problem))
    upper, lower = feed.upper.arrays, feed.lower.arrays  # both sides walk over the same rows
    stride = feed.lower.stride(method.draws(problem).lower)
    overheads = []

    def run():
        return _run(problem, method, start, feed, steps)

    def by_hand(log):
        given = task.upper, task.lower, task.x0, task.y0, upper, lower, RATES
        settings = {"steps": steps, "batch_size": task.batch_size, "log": log}
        return pair.by_hand(*given, key=keys[1], stride=stride, **settings)

    def solve():
        settings = {"data": data, "steps": steps, "progress": False, "certify": False}
        began = time.perf_counter()
        inside = bl.solve(problem, method, task.x0, task.y0, **settings).stats.seconds
        overheads.append(time.perf_counter() - began - inside)
        return Seconds(inside)

    cases = {
        "run": run,
        "hand": functools.partial(by_hand, log=True),
        "solve": solve,
        "bare": functools.partial(by_hand, log=False),
    }
    times = {
        name: [t / steps for t in seconds] for name, seconds in interleave(cases, repeats).items()
    }
    state, (x, y, _) = run()[0], by_hand(log=True)
    off = jnp.sqrt(_square((state.x, state.y), (x, y)) / _square((x, y), (task.x0, task.y0)))
    name = f"{type(method).__name__}, {task.name}"
    note = f"iterates agree to {float(off):.0e}"
    call = statistics.median(overheads[1:]) * 1e3
    return [
        compare(f"{name}: run", times["run"], times["hand"], target=TARGET, note=note),
        compare(f"{name}: solve", times["solve"], times["hand"], target=TARGET),
        compare(f"{name}: run, by hand without history", times["run"], times["bare"]),
        Row(f"{name}: solve, a call besides its steps", call, unit="ms"),
    ]


@functools.partial(jax.jit, static_argnames="steps")
def _run(problem, method, state, feed, steps):
    return bl.run(problem, method, state, data=feed, steps=steps)


def _square(a, b):
    """The squared distance of two trees."""
    return sum(jnp.sum((p - q) ** 2) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def measure(repeats: int = 11) -> list[Row]:
    rows = []
    for task, steps in ((logistic(), 5000), (cleaning(), 10)):
        for pair in PAIRS.values():
            rows += of(task, pair, max(2, steps // pair.price), repeats)
    return rows


if __name__ == "__main__":
    main("steps", measure)
