"""Sixteen seeds by one vmap of `run`, against one seed; and what a new step size compiles: nothing.

Seeds that differ in where they start share one order of the samples: one slice a step, and
matrix products where there were products with a vector. Seeds with an order each hold a copy of
the data each, and a step is bound by memory: what the same vmap by hand costs stands beside it.
`python -m benchmarks.seeds`.
"""

import functools

import jax

import bilevel as bl
from benchmarks.harness import Row, compare, interleave, main
from benchmarks.reference import shuffle
from benchmarks.reference.soba import soba
from benchmarks.tasks import Task, cleaning, logistic
from bilevel.data import level_keys

SEEDS = 16
RATES = (0.05, 0.1, 0.1)


def sweep(task: Task, steps: int, repeats: int) -> list[Row]:
    """SOBA from sixteen starts on one order, and from one start on sixteen orders."""
    problem, method = bl.Problem(task.upper, task.lower), bl.methods.SOBA(*RATES)
    data = bl.Data(upper=task.upper_data, lower=task.lower_data, batch_size=task.batch_size)
    keys = jax.random.split(jax.random.key(0), SEEDS)

    @jax.jit
    @jax.vmap
    def feeds(key):
        return data.feed(key, method.draws(problem))

    @jax.jit
    @jax.vmap
    def orders(key):
        upper, lower = level_keys(key)
        return (
            shuffle(upper, task.upper_data, task.batch_size),
            shuffle(lower, task.lower_data, task.batch_size),
        )

    def run(y0, feed):
        start = method.init(problem, task.x0, y0)
        return bl.run(problem, method, start, data=feed, steps=steps)

    def by_hand(y0, data):
        settings = {"steps": steps, "batch_size": task.batch_size}
        return soba(task.upper, task.lower, task.x0, y0, *data, RATES, **settings)

    starts = jax.vmap(lambda key: bl.trees.random_like(key, task.y0))(keys)
    fed, ordered = feeds(keys), orders(keys)
    cases = {
        "one": functools.partial(jax.jit(run), task.y0, _first(fed)),
        "starts": functools.partial(jax.jit(jax.vmap(run, (0, None))), starts, _first(fed)),
        "orders": functools.partial(jax.jit(jax.vmap(run, (None, 0))), task.y0, fed),
        "starts by hand": functools.partial(
            jax.jit(jax.vmap(by_hand, (0, None))), starts, _first(ordered)
        ),
        "orders by hand": functools.partial(
            jax.jit(jax.vmap(by_hand, (None, 0))), task.y0, ordered
        ),
    }
    times = interleave(cases, repeats)

    def row(what, a, b, target=None):
        name = f"SOBA, {task.name}, {SEEDS} {what}"
        return compare(name, times[a], times[b], scale=1e3, unit="ms", target=target)

    return [
        row("starts, one order: against one", "starts", "one", SEEDS),
        row("starts, one order: against by hand", "starts", "starts by hand", 1.10),
        row("orders: against one", "orders", "one", SEEDS),
        row("orders: against by hand", "orders", "orders by hand", 1.10),
    ]


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def traces() -> Row:
    """How often the losses are traced by a first `solve`, and again with other step sizes."""
    task, count = logistic(n=500), 0

    def counted(x, y, batch):
        nonlocal count
        count += isinstance(jax.tree.leaves(y)[0], jax.core.Tracer)
        return task.lower(x, y, batch)

    problem = bl.Problem(task.upper, counted)
    data = bl.Data(upper=task.upper_data, lower=task.lower_data, batch_size=task.batch_size)
    compiled, seen = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: event.endswith("backend_compile_duration") and compiled.append(event)
    )
    for rates in (RATES, (0.02, 0.2, 0.2)):
        bl.solve(
            problem,
            bl.methods.SOBA(*rates),
            task.x0,
            task.y0,
            data=data,
            steps=200,
            progress=False,
        )
        seen.append((count, len(compiled)))
    (first, built), (both, rebuilt) = seen
    note = f"the loss is traced {first} times, then {both - first} (to check shapes)"
    again = rebuilt - built
    return Row(
        "solve again, other step sizes: compilations", again, built, ratio=again / built, target=0,
        note=note,
    )  # fmt: skip


def measure(repeats: int = 15) -> list[Row]:
    return [
        *sweep(logistic(), 300, repeats),
        *sweep(cleaning((784, 10), n=2000), 20, repeats),
        traces(),
    ]


if __name__ == "__main__":
    main("seeds", measure)
