"""Problems whose lower solution is x itself: every inverse Hessian is the identity."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case


def _follow(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sum((y - x) ** 2) / 2


def _near_one(x: Array, y: Array, batch: Any) -> Scalar:
    return (y - 1) ** 2 / 2


def scalar(dtype: Any = None) -> Case:
    """`g = ½ (y − x)²`, `f = ½ (y − 1)²`: y* = x and the hypergradient is x − 1."""
    return Case(
        name="scalar",
        problem=Problem(_near_one, _follow),
        x0=jnp.array(3.0, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: x,
        x_star=jnp.array(1.0, dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


def _mixed(x: Array, y: Array, batch: Any) -> Scalar:
    target = jnp.array([1.0, -2.0, 0.5], y.dtype)
    return jnp.sum((y - target) ** 2) / 2 + x @ x / 4 + x @ jnp.roll(y, 1) / 4


def shifted(dtype: Any = None) -> Case:
    """`g = ½ ‖y − x‖²`: y* = x, so the hypergradient is `∇_x f + ∇_y f`. Shows any wrong sign.

    With S the cyclic shift, `f = ½ ‖y − t‖² + ¼ ‖x‖² + ¼ x'Sy`, so x* solves
    `(3/2 I + ¼ (S + S')) x = t`; in three entries `S + S' = 11' − I`.
    """
    x_star = np.linalg.solve(1.25 * np.eye(3) + 0.25, np.array([1.0, -2.0, 0.5]))
    return Case(
        name="shifted",
        problem=Problem(_mixed, _follow),
        x0=jnp.array([1.0, 2.0, -1.0], dtype),
        y0=jnp.zeros(3, dtype),
        y_star=lambda x: x,
        x_star=jnp.array(x_star, dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )
