"""F2SA by hand: two lower descents side by side, first derivatives only."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.reference import move, norm, take


@functools.partial(
    jax.jit, static_argnames=("f", "g", "steps", "batch_size", "lower_steps", "stride", "log")
)
def f2sa(f, g, x, y, upper, lower, rates, *, steps, batch_size, lower_steps, stride, log=True):
    a, b, c, penalty0 = rates

    def step(carry, k):
        x, y, z = carry
        penalty = penalty0 * (k + 1.0) ** (1 / 3)

        def descend(carry, t):
            y, z = carry
            at = k * stride + t * batch_size
            top, bottom = take(upper, at, batch_size), take(lower, at, batch_size)
            g_z = jax.grad(g, argnums=1)(x, z, bottom)
            d_y = jax.grad(lambda y: g(x, y, bottom) + f(x, y, top) / penalty)(y)
            return (move(y, b, d_y), move(z, c, g_z)), norm(g_z) if log else None

        (y, z), norms = jax.lax.scan(descend, (y, z), jnp.arange(lower_steps))
        last = k * stride + lower_steps * batch_size
        top, bottom = take(upper, last, batch_size), take(lower, last, batch_size)
        value, f_x = jax.value_and_grad(f)(x, y, top)
        at_y, at_z = jax.grad(g)(x, y, bottom), jax.grad(g)(x, z, bottom)
        h = jax.tree.map(lambda f_x, p, q: f_x + penalty * (p - q), f_x, at_y, at_z)
        x = move(x, a * (k + 1.0) ** (-1 / 3), h)
        return (x, y, z), (value, norm(h), norms[-1], penalty) if log else None

    (x, y, _), history = jax.lax.scan(step, (x, y, y), jnp.arange(steps))
    return x, y, history
