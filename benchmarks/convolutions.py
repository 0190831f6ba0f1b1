"""A step of SOBA on a small convnet on a CPU, against the same by hand in jitted steps.

Processor time, as steps take all cores. By hand is a Python loop of jitted steps, which has no
loop of XLA around the convolutions.
`python -m benchmarks.convolutions`.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import bilevel as bl
from benchmarks.harness import Row, Seconds, compare, interleave, main

TARGET = 1.2
RATES = 0.05, 0.1, 0.1
STEPS, BATCH, ROWS = 10, 256, 1024


def scores(y, pictures):
    h = pictures
    for kernel in y["kernels"]:
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        h = jax.nn.relu(h)
    return h.mean((1, 2)) @ y["head"]


def cross_entropy(y, pictures, labels):
    return optax.softmax_cross_entropy_with_integer_labels(scores(y, pictures), labels)


def upper(x, y, batch):
    return cross_entropy(y, *batch).mean()


def lower(x, y, batch):
    i, *samples = batch
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(y))
    return (jax.nn.sigmoid(x[i]) * cross_entropy(y, *samples)).mean() + 1e-3 * decay


def task():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(3, 3, 1, 16), (3, 3, 16, 16), (3, 3, 16, 16)]
    kernels = [0.2 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    y0 = {"kernels": kernels, "head": 0.1 * jax.random.normal(keys[3], (16, 10))}
    pictures = jax.random.normal(keys[4], (ROWS, 8, 8, 1))
    samples = pictures, jnp.arange(ROWS) % 10
    return jnp.zeros(ROWS), y0, samples, (jnp.arange(ROWS), *samples)


@functools.partial(jax.jit, donate_argnums=0)
def step(carry, k, top, bottom):
    """One step of SOBA."""
    (x, y, v), (a, b, c) = carry, RATES

    def take(rows):
        return jax.lax.dynamic_slice_in_dim(rows, k * BATCH % ROWS, BATCH)

    top, bottom = (jax.tree.map(take, rows) for rows in (top, bottom))
    f_x, f_y = jax.grad(upper, (0, 1))(x, y, top)
    (g_y, _), (hvp, cross) = jax.jvp(
        lambda y: jax.grad(lower, (1, 0))(x, y, bottom), (y,), (v,)
    )  # fmt: skip

    def move(at, rate, *directions):
        return jax.tree.map(lambda p, *d: p - rate * functools.reduce(jnp.subtract, d), at,
                            *directions)  # fmt: skip

    return move(x, a, f_x, cross), move(y, b, g_y), move(v, c, hvp, f_y)


def processor(call: Callable) -> Callable:
    def timed():
        start = time.process_time()
        jax.block_until_ready(call())
        return Seconds((time.process_time() - start) / STEPS)

    return timed


def measure(repeats: int = 5) -> list[Row]:
    x0, y0, top, bottom = task()
    problem = bl.Problem(upper, lower)
    method, data = bl.methods.SOBA(*RATES), bl.Data(top, bottom, batch_size=BATCH)
    options = {"certify": False, "progress": False, "log_every": STEPS}

    def by_hand():
        carry = jax.tree.map(jnp.copy, (x0, y0, jax.tree.map(jnp.zeros_like, y0)))
        for k in range(STEPS):
            carry = step(carry, k, top, bottom)
        return carry

    # A run of twice the steps less one of the steps: what a call costs besides is told elsewhere.
    def solved(chunks):
        return bl.solve(problem, method, x0, y0, data=data, steps=chunks * STEPS, **options).x

    def ours():
        first = processor(lambda: solved(1))()
        return Seconds(processor(lambda: solved(2))() - first)

    times = interleave({"ours": ours, "by hand": processor(by_hand)}, repeats)
    what = "SOBA step, convnet of three layers, batch 256"
    note = "processor time; by hand: a Python loop of jitted steps"
    row = compare(what, times["ours"], times["by hand"], scale=1e3, unit="ms", target=TARGET)
    return [row._replace(note=note)]


if __name__ == "__main__":
    main("convolutions", measure)
