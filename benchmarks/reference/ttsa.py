"""TTSA by hand: one lower step, then a Neumann product of random length."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.reference import move, norm, take


@functools.partial(
    jax.jit, static_argnames=("f", "g", "steps", "batch_size", "terms", "stride", "log")
)
def ttsa(f, g, x, y, upper, lower, rates, key, *, steps, batch_size, terms, stride, log=True):
    a, b, c = rates

    def step(carry, k):
        x, y, key = carry

        def bottom(i):
            return take(lower, k * stride + i * batch_size, batch_size)

        g_y = jax.grad(g, argnums=1)(x, y, bottom(0))
        y = move(y, b * (k + 1.0) ** -0.4, g_y)
        value, (f_x, f_y) = jax.value_and_grad(f, argnums=(0, 1))(
            x, y, take(upper, k * batch_size, batch_size)
        )

        def factor(i, r):
            sample = bottom(2 + i)
            return move(
                r, c, jax.jvp(lambda y: jax.grad(g, argnums=1)(x, y, sample), (y,), (r,))[1]
            )

        key, now = jax.random.split(key)
        p = jax.random.randint(now, (), 0, terms)
        v = jax.tree.map(lambda r: terms * c * r, jax.lax.fori_loop(0, p, factor, f_y))
        sample = bottom(1)
        cross = jax.jvp(lambda y: jax.grad(g, argnums=0)(x, y, sample), (y,), (v,))[1]
        h = jax.tree.map(jnp.subtract, f_x, cross)
        x = move(x, a * (k + 1.0) ** -0.6, h)
        return (x, y, key), (value, norm(h), norm(g_y)) if log else None

    (x, y, _), history = jax.lax.scan(step, (x, y, key), jnp.arange(steps))
    return x, y, history
