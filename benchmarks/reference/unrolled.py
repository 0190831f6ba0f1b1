"""A hypergradient through unrolled lower steps, by hand."""

import functools

import jax


@functools.partial(jax.jit, static_argnames=("f", "g", "steps", "checkpoint"))
def unrolled(f, g, x, y, upper, lower, step_size, *, steps, checkpoint=False):
    def value(x):
        def step(y, _):
            g_y = jax.grad(g, argnums=1)(x, y, lower)
            return jax.tree.map(lambda p, d: p - step_size * d, y, g_y), None

        last, _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, y, length=steps)
        return f(x, last, upper)

    return jax.value_and_grad(value)(x)
