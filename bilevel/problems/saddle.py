"""A minimax problem as a bilevel one: the lower loss is the upper loss with its sign turned."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case


class Saddle(NamedTuple):
    A: Any
    B: Any
    D: Any
    a: Any
    b: Any


def _upper(s: Saddle, x: Array, y: Array, batch: Any) -> Scalar:
    return x @ s.A @ x / 2 + x @ s.B @ y - y @ s.D @ y / 2 + s.a @ x + s.b @ y


def _lower(s: Saddle, x: Array, y: Array, batch: Any) -> Scalar:
    return -_upper(s, x, y, batch)


def minmax(dtype: Any = None) -> Case:
    """`min_x max_y f`, `f = ½ x'Ax + x'By − ½ y'Dy + a'x + b'y`, strongly convex and concave.

    `y* = D⁻¹(B'x + b)`. As ∇_y f vanishes there, the hypergradient is `∇_x f` alone, and x* solves
    `(A + BD⁻¹B') x = −a − BD⁻¹b`.
    """
    s = Saddle(
        A=np.array([[1.0, 0.2], [0.2, 0.5]]),
        B=np.array([[1.0, 0, -0.5], [0.3, -1, 0.4]]),
        D=np.array([[2.0, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.5]]),
        a=np.array([0.3, -0.4]),
        b=np.array([-1.0, 0.5, 0.2]),
    )
    BD = s.B @ np.linalg.inv(s.D)
    x_star = np.linalg.solve(s.A + BD @ s.B.T, -s.a - BD @ s.b)
    s = Saddle(*(jnp.array(a, dtype) for a in s))
    return Case(
        name="minmax",
        problem=Problem(Partial(_upper, s), Partial(_lower, s)),
        x0=jnp.array([1.0, -1.0], dtype),
        y0=jnp.zeros(3, dtype),
        y_star=lambda x: jnp.linalg.solve(s.D, s.B.T @ x + s.b),
        x_star=jnp.array(x_star, dtype),
        lower_mu=0.408031275459,
        lower_L=2.210580172322,
    )
