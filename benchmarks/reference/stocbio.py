"""stocBiO by hand: a few lower steps, then a Neumann series."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.reference import move, norm, take

STATIC = ("f", "g", "steps", "batch_size", "lower_steps", "terms", "stride", "log")


@functools.partial(jax.jit, static_argnames=STATIC)
def stocbio(
    f, g, x, y, upper, lower, rates, *, steps, batch_size, lower_steps, terms, stride, log=True
):
    a, b, c = rates

    def step(carry, k):
        x, y = carry

        def bottom(i):
            return take(lower, k * stride + i * batch_size, batch_size)

        def descend(y, i):
            g_y = jax.grad(g, argnums=1)(x, y, bottom(i))
            return move(y, b, g_y), norm(g_y) if log else None

        y, norms = jax.lax.scan(descend, y, jnp.arange(lower_steps))
        value, (f_x, f_y) = jax.value_and_grad(f, argnums=(0, 1))(
            x, y, take(upper, k * batch_size, batch_size)
        )

        def term(carry, i):
            r, total = carry
            sample = bottom(i)
            r = move(r, c, jax.jvp(lambda y: jax.grad(g, argnums=1)(x, y, sample), (y,), (r,))[1])
            return (r, jax.tree.map(jnp.add, total, r)), None

        factors = lower_steps + 1 + jnp.arange(terms)
        (_, total), _ = jax.lax.scan(term, (f_y, f_y), factors)
        v = jax.tree.map(lambda s: c * s, total)
        sample = bottom(lower_steps)
        cross = jax.jvp(lambda y: jax.grad(g, argnums=0)(x, y, sample), (y,), (v,))[1]
        h = jax.tree.map(jnp.subtract, f_x, cross)
        return (move(x, a, h), y), (value, norm(h), norms[-1]) if log else None

    (x, y), history = jax.lax.scan(step, (x, y), jnp.arange(steps))
    return x, y, history
