"""A lower level whose minimisers form a manifold: optimistic and pessimistic solutions differ."""

from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case


def _upper(x: Array, y: Array, batch: Any) -> Scalar:
    return x @ y + jnp.sum((x - jnp.array([2.0, 0.0], x.dtype)) ** 2) / 2


def _lower(x: Array, y: Array, batch: Any) -> Scalar:
    return (jnp.sum((y - x / 2) ** 2) - 1) ** 2 / 4


def _farthest(sign: float, x: Array) -> Array:
    return x / 2 + sign * x / jnp.linalg.norm(x)


def circle(dtype: Any = None, *, optimistic: bool = False) -> Case:
    """`g = ¼ (‖y − x/2‖² − 1)²`, `f = xᵀy + ½ ‖x − (2, 0)‖²`: y anywhere on a unit circle.

    y is the worst of the circle for f, or with `optimistic` the best: `y = x/2 ± x/‖x‖`, with
    `l = ½ ‖x‖² ± ‖x‖ + ½ ‖x − (2, 0)‖²`, least at (½, 0) with 7/4, or at (3/2, 0) with −¼. Both
    hyper-objectives have a kink at x = 0. On the circle g is flat along it and has curvature 2
    across; its centre is a local maximum. Only near the circle does the Polyak-Łojasiewicz
    inequality hold.
    """
    return Case(
        name="circle",
        problem=Problem(_upper, _lower),
        x0=jnp.array([1.0, 1.0], dtype),
        y0=jnp.array([1.0, 0.0], dtype),
        y_star=Partial(_farthest, -1.0 if optimistic else 1.0),
        x_star=jnp.array([1.5 if optimistic else 0.5, 0.0], dtype),
        lower_mu=0.0,
        lower_L=2.0,
    )
