"""A smooth problem that is not quadratic: the Hessians depend on x and y.

g(x, y) = ½ y'Hy + y'(Cx + c) + ½ Σ_k log cosh(y_k + x_{k mod 2})
f(x, y) = ½ ‖y − (1, −1, ½)‖² + ½ Σ_k sin y_k + ¼ ‖x‖² + x_0 y_1
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case
from bilevel.problems.quadratic import Lower, coefficients, lower_loss


def _upper(x: Array, y: Array, batch: Any) -> Scalar:
    target = jnp.array([1.0, -1.0, 0.5], y.dtype)
    return jnp.sum((y - target) ** 2 + jnp.sin(y)) / 2 + x @ x / 4 + x[0] * y[1]


def _lower(g: Lower, x: Array, y: Array, batch: Any) -> Scalar:
    u = y + x[jnp.array([0, 1, 0])]
    log_cosh = jnp.logaddexp(u, -u) - jnp.log(2.0).astype(u.dtype)
    return lower_loss(g, x, y, None) + jnp.sum(log_cosh) / 2


def _solution_map(g: Lower, x: Array) -> Array:
    """Newton's method; the last two steps, at the solution, give derivatives up to order three."""

    def newton(y: Array, x: Array) -> Array:
        loss = Partial(_lower, g, x)
        return y - jnp.linalg.solve(jax.hessian(loss)(y, None), jax.grad(loss)(y, None))

    y = jnp.zeros(3, x.dtype)
    y = jax.lax.fori_loop(0, 30, lambda _, y: newton(y, jax.lax.stop_gradient(x)), y)
    return newton(newton(y, x), x)


def curv(dtype: Any = None) -> Case:
    """The curved reference problem."""
    _, g = coefficients(dtype)
    return Case(
        name="curv",
        problem=Problem(_upper, Partial(_lower, g)),
        x0=jnp.array([1.0, -1.0], dtype),
        y0=jnp.zeros(3, dtype),
        y_star=Partial(_solution_map, g),
        x_star=jnp.array([0.5603495229548661, 1.3052116365925908], dtype),  # Newton on the value
        lower_mu=0.408031275459,  # of H alone: a bound for every x and y
        lower_L=2.710580172322,
    )
