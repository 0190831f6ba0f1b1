"""Bounds on x or on y, with active and inactive sides."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case
from bilevel.problems.quadratic import quad


def boxed(dtype: Any = None) -> Case:
    """`quad` with x in [−½, ½]². At the solution x_0 sits on its bound and x_1 inside."""
    case = quad(dtype)
    return replace(
        case,
        name="boxed",
        problem=Problem(case.problem.upper, case.problem.lower, upper_set=sets.Box(-0.5, 0.5)),
        x0=jnp.array([0.5, -0.5], dtype),
        x_star=jnp.array([-0.5, 0.14323121104461567], dtype),
    )


def _upper(x: Array, y: Array, batch: Any) -> Scalar:
    to_y, to_x = jnp.array([0.5, 0.25], y.dtype), jnp.array([4.0, 0.0], x.dtype)
    return jnp.sum((y - to_y) ** 2) / 2 + jnp.sum((x - to_x) ** 2) / 4


def _lower(x: Array, y: Array, batch: Any) -> Scalar:
    return y[0] ** 2 + y[0] * y[1] + y[1] ** 2 - x @ y


def _solution_map(x: Array) -> Array:
    """Coordinate descent; every sweep reduces the error of y by a factor of four."""

    def sweep(y, _):
        first = jnp.clip((x[0] - y[1]) / 2, -1, 1)
        second = jnp.clip((x[1] - first) / 2, -1, 1)
        return jnp.stack([first, second]), None

    y, _ = jax.lax.scan(sweep, jnp.zeros_like(x), length=40)
    return y


def lower_box(dtype: Any = None) -> Case:
    """A coupled quadratic in y over the box [−1, 1]²; at the solution one side is active.

    `g = y_0² + y_0 y_1 + y_1² − x'y`, `f = ½ ‖y − (½, ¼)‖² + ¼ ‖x − (4, 0)‖²`.
    On the side y_0 = 1 the other entry is `y_1 = (x_1 − 1) / 2`, so f is least at x = (4, ½), with
    y = (1, −¼) and f = 0.3125. The side is active there because `∂g/∂y_0 = 2 − ¼ − 4 < 0`; off it
    `x_0 <= 2 + y_1`, which keeps f above 0.51, so this is the solution. At x0 no side is active.
    """
    return Case(
        name="lower_box",
        problem=Problem(_upper, _lower, lower_set=sets.Box(-1.0, 1.0)),
        x0=jnp.array([0.5, -0.5], dtype),
        y0=jnp.zeros(2, dtype),
        y_star=_solution_map,
        x_star=jnp.array([4.0, 0.5], dtype),
        lower_mu=1.0,
        lower_L=3.0,
    )
