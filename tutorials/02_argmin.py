"""
Differentiating through a solution
==================================

``bl.lower.argmin`` is the lower solution as a function: differentiable in forward and reverse
mode, any number of times, whatever solver found it. ``custom_root`` and ``custom_fixed_point`` do
the same for a solver of yours. Those who come from jaxopt find its implicit differentiation here.
"""

# %%
# A function ``g(x, y)`` is enough.

import jax
import jax.numpy as jnp

import bilevel as bl

jax.config.update("jax_enable_x64", True)


def g(x, y):
    return jnp.sum((y - jnp.sin(x)) ** 2) + 0.5 * jnp.sum(y**2)


x = jnp.array([0.3, 1.0])
y = bl.lower.argmin(g, x, jnp.zeros(2))
jacobian = jax.jacrev(lambda x: bl.lower.argmin(g, x, jnp.zeros(2)))(x)
print(y, jnp.sin(x) / 1.5)
print(jacobian)

# %%
# With constraints, give a problem with a ``lower_set``. The derivative is that along the
# constraints that are active.

boxed = bl.Problem(
    lambda x, y, b: 0.0 * y.sum(), lambda x, y, b: g(x, y), lower_set=bl.sets.Box(0.0, 0.5)
)
print(jax.jacrev(lambda x: bl.lower.argmin(boxed, x, jnp.zeros(2)))(x))  # y[1] is at its bound

# %%
# A solver of your own: jaxopt's ``@custom_root(F)`` becomes ``@bl.lower.custom_root(F)``.


@bl.lower.custom_root(jax.grad(lambda y, x: g(x, y)))
def gradient_descent(y, x):
    return jax.lax.fori_loop(0, 200, lambda i, y: y - 0.2 * jax.grad(lambda y: g(x, y))(y), y)


print(jax.jacfwd(lambda x: gradient_descent(jnp.zeros(2), x))(x))

# %%
# A fixed point: projected gradient steps on a nonnegative least-squares problem.


def step(y, x):
    return jnp.maximum(y - 0.2 * jax.grad(lambda y: g(x, y))(y), 0.0)


@bl.lower.custom_fixed_point(step)
def projected_gradient(y, x):
    return jax.lax.fori_loop(0, 200, lambda i, y: step(y, x), y)


print(jax.jacrev(lambda x: projected_gradient(jnp.zeros(2), x))(jnp.array([0.3, -1.0])))
