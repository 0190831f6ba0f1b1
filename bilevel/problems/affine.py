"""Linear equations at both levels."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Scalar

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case


def _upper(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sum((y - 1) ** 2) / 2 + x @ x / 2


def _lower(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sum((y - x) ** 2) / 2


def _first(x: Array) -> Array:
    return x[:1]


def _solution_map(x: Array) -> Array:
    return jnp.stack([x[0] - x[1] / 2, x[1] / 2])


def eqeq(dtype: Any = None) -> Case:
    """Equations on x, and equations on y that depend on x.

    `x_0 + x_1 = 1` and `y_0 + y_1 = x_0`; `g = ½ ‖y − x‖²`, `f = ½ ‖y − (1, 1)‖² + ½ ‖x‖²`. Then
    `y* = (x_0 − ½ x_1, ½ x_1)`; the solution is x = (2/3, 1/3), y = (1/2, 1/6), l = 3/4. A
    hypergradient that ignores the x-dependence of the equations finds x = (1/2, 1/2), l = 0.8125.
    """
    row = jnp.ones((1, 2), dtype)
    return Case(
        name="eqeq",
        problem=Problem(
            _upper,
            _lower,
            upper_set=sets.Affine(row, jnp.ones(1, dtype)),
            lower_set=sets.Polyhedron(E=row, d=_first),
        ),
        x0=jnp.array([-1.0, 2.0], dtype),
        y0=jnp.array([2.0, -3.0], dtype),
        y_star=_solution_map,
        x_star=jnp.array([2 / 3, 1 / 3], dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )
