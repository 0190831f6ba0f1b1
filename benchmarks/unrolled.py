"""One hypergradient through 20 lower steps of hyper-cleaning: time and temporary memory.

Plain, against the same scan by hand; with `checkpoint=True`, against the plain one by hand, which
is what a user gives up (time) and gains (memory). `python -m benchmarks.unrolled`.
"""

import functools

import jax
import jax.numpy as jnp

import bilevel as bl
from benchmarks.harness import Row, compare, interleave, main
from benchmarks.reference.unrolled import unrolled
from benchmarks.tasks import Task, cleaning

STEPS = 20


@functools.partial(jax.jit, static_argnames="checkpoint")
def ours(problem, x, y, batch, step_size, checkpoint=False):
    h = bl.hypergrad.unrolled(
        problem, x, y, batch, update=step_size, steps=STEPS, checkpoint=checkpoint
    )
    return h.value, h.grad


def of(task: Task, repeats: int) -> list[Row]:
    problem = bl.Problem(task.upper, task.lower)
    x, y, upper, lower = task.x0, task.y0, task.upper_data, task.lower_data
    size = jnp.asarray(0.1)
    compiled, cases = {}, {}
    for checkpoint in (False, True):
        here = ours.lower(problem, x, y, bl.Batch(upper, lower), size, checkpoint=checkpoint)
        there = unrolled.lower(
            task.upper, task.lower, x, y, upper, lower, size, steps=STEPS, checkpoint=checkpoint
        )
        a, b = ("ours", checkpoint), ("hand", checkpoint)
        compiled[a], compiled[b] = here.compile(), there.compile()
        cases[a] = functools.partial(compiled[a], problem, x, y, bl.Batch(upper, lower), size)
        cases[b] = functools.partial(compiled[b], x, y, upper, lower, size)
    times = interleave(cases, repeats)
    memory = {k: c.memory_analysis().temp_size_in_bytes / 1e6 for k, c in compiled.items()}
    grads = {k: call()[1] for k, call in cases.items()}
    name = f"unrolled, {task.name}"
    plain, saved = ("hand", False), ("hand", True)
    off = max(
        float(jnp.linalg.norm(grad - grads[plain]) / jnp.linalg.norm(grads[plain]))
        for grad in grads.values()
    )

    def time(what, a, b, target=None):
        return compare(what, times[a], times[b], scale=1e3, unit="ms", target=target)

    def room(what, a, b, target=None):
        return Row(what, memory[a], memory[b], "MB", memory[a] / memory[b], target=target)

    mine, lean = ("ours", False), ("ours", True)
    return [
        time(name, mine, plain, 1.05)._replace(note=f"grads agree to {off:.0e}"),
        room(f"{name}, memory", mine, plain, 1.05),
        time(f"{name}, checkpoint", lean, plain, 1.15),
        time(f"{name}, checkpoint against same by hand", lean, saved, 1.05),
        room(f"{name}, checkpoint, memory", lean, plain, 0.1),
        room(f"{name}, checkpoint, memory against same by hand", lean, saved, 1.05),
    ]


def measure(repeats: int = 11) -> list[Row]:
    linear, mlp = cleaning((784, 10)), cleaning((784, 300, 10))
    return of(linear, repeats) + of(mlp, max(3, repeats // 3))


if __name__ == "__main__":
    main("unrolled", measure)
