"""SOBA by hand."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.reference import move, norm, take


@functools.partial(jax.jit, static_argnames=("f", "g", "steps", "batch_size", "log"))
def soba(f, g, x, y, upper, lower, rates, *, steps, batch_size, log=True):
    a, b, c = rates

    def step(carry, k):
        x, y, v = carry
        top, bottom = (
            take(upper, k * batch_size, batch_size),
            take(lower, k * batch_size, batch_size),
        )
        value, (f_x, f_y) = jax.value_and_grad(f, argnums=(0, 1))(x, y, top)
        (g_y, _), (hvp, cross) = jax.jvp(
            lambda y: jax.grad(g, argnums=(1, 0))(x, y, bottom), (y,), (v,)
        )
        h = jax.tree.map(jnp.subtract, f_x, cross)
        carry = move(x, a, h), move(y, b, g_y), move(v, c, jax.tree.map(jnp.subtract, hvp, f_y))
        return carry, (value, norm(h), norm(g_y)) if log else None

    v = jax.tree.map(jnp.zeros_like, y)
    (x, y, _), history = jax.lax.scan(step, (x, y, v), jnp.arange(steps))
    return x, y, history
