"""Constraints that tie the two levels together."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar, ScalarLike

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case


def _row(x: Array) -> Float[Array, "1"]:
    return jnp.reshape(x, (1,))


def _at_most_x(dtype: Any) -> sets.Polyhedron:
    """`y ≤ x`, both scalars."""
    return sets.Polyhedron(jnp.ones((1, 1), dtype), _row)


def _near_one_and_three(x: Array, y: Array, batch: Any) -> Scalar:
    return (x - 1) ** 2 + (y - 3) ** 2


def _to_twice(x: Array, y: Array, batch: Any) -> Scalar:
    return (y - 2 * x) ** 2


def couple1(dtype: Any = None) -> Case:
    """`g = (y − 2x)²` over `y ≤ x`, `f = (x − 1)² + (y − 3)²`.

    `y* = x` with multiplier 2x where x ≥ 0, else 2x. At the solution x = y = 2, the multiplier is
    4 and f is 2.
    """
    return Case(
        name="couple1",
        problem=Problem(_near_one_and_three, _to_twice, lower_set=_at_most_x(dtype)),
        x0=jnp.array(0.5, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: jnp.minimum(x, 2 * x),
        x_star=jnp.array(2.0, dtype),
        lower_mu=2.0,
        lower_L=2.0,
    )


def couple1_slack(x: Array, t: ScalarLike) -> Scalar:
    """`x − y_t(x) = (−x + √(x² + 2t))/2` of the minimiser with the log barrier."""
    return (jnp.sqrt(x**2 + 2 * jnp.asarray(t, x.dtype)) - x) / 2


def _wavy(x: Array, y: Array, batch: Any) -> Scalar:
    bumps = jnp.exp(2 - y) / (2 + jnp.cos(4 * x))
    return bumps + jnp.log((4 * x - 2) ** 2 + 1) / 2 + x**2


def cptoy(dtype: Any = None) -> Case:
    """The toy of BLOCC: `g = (y − 2x)²` over `y ≤ x`, a wavy upper loss, x in [0, 3]; y* = x.

    `f = exp(2 − y)/(2 + cos 4x) + ½ log((4x − 2)² + 1) + x²`. Local minima at x = 0.3007047783
    (f = 2.6544983314, the solution) and at x = 1.1626902180 (f = 3.5849968898).
    """
    return Case(
        name="cptoy",
        problem=Problem(
            _wavy, _to_twice, upper_set=sets.Box(0.0, 3.0), lower_set=_at_most_x(dtype)
        ),
        x0=jnp.array(0.1, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: jnp.minimum(x, 2 * x),
        x_star=jnp.array(0.3007047783295452, dtype),
        lower_mu=2.0,
        lower_L=2.0,
    )


def _duel(x: Array, y: Array, batch: Any) -> Scalar:
    return x**2 - (y - 2) ** 2 / 2


def _duel_of_follower(x: Array, y: Array, batch: Any) -> Scalar:
    return -_duel(x, y, batch)


def mmcouple(dtype: Any = None) -> Case:
    """`min_x max_{y ≤ x} x² − ½ (y − 2)²`: y* = min(x, 2).

    At the solution x = y = −2, the multiplier is 4 and the value −4.
    """
    return Case(
        name="mmcouple",
        problem=Problem(_duel, _duel_of_follower, lower_set=_at_most_x(dtype)),
        x0=jnp.array(1.0, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: jnp.minimum(x, 2),
        x_star=jnp.array(-2.0, dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


def _near_two(x: Array, y: Array, batch: Any) -> Scalar:
    return (x - 2) ** 2 / 2


def _to_twice_halved(x: Array, y: Array, batch: Any) -> Scalar:
    return (y - 2 * x) ** 2 / 2


def _beyond_one(x: Array, y: Array) -> Scalar:
    return y - 1


def upcon(dtype: Any = None) -> Case:
    """`g = ½ (y − 2x)²`, `f = ½ (x − 2)²`, with the upper constraint `y*(x) ≤ 1`.

    y* = 2x; at the solution x = ½ the multiplier is ¾ and f is 9/8.
    """
    return Case(
        name="upcon",
        problem=Problem(_near_two, _to_twice_halved, upper_set=sets.Coupled(_beyond_one)),
        x0=jnp.array(0.0, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: 2 * x,
        x_star=jnp.array(0.5, dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


def upcon_penalised(weight: ScalarLike) -> Scalar:
    """The minimiser of `½ (x − 2)² + ½ weight [2x − 1]_+²`: `½ + 3/(2 (1 + 4 weight))`."""
    return 0.5 + 1.5 / (1 + 4 * jnp.asarray(weight))


def upcon_barrier(t: ScalarLike) -> Scalar:
    """The minimiser of `½ (x − 2)² − t log(1 − 2x)`: `(x − 2)(1 − 2x) + 2t = 0`, inside."""
    t = jnp.asarray(t)
    return (5 - jnp.sqrt(9 + 16 * t)) / 4


def _apart(x: Array, y: dict[str, Array], batch: Any) -> Scalar:
    return jnp.sum((x - y["second"]) ** 2) / 2 + jnp.sum((y["first"] - 1) ** 2) / 2


def _tilted(x: Array, y: dict[str, Array], batch: Any) -> Scalar:
    return jnp.sum(y["first"] ** 2) / 2 - jnp.sum(x * y["first"]) + jnp.sum(y["second"])


def _minus_sum(x: Array) -> Float[Array, "1"]:
    return _row(-jnp.sum(x))


def _kindest(x: Array) -> dict[str, Array]:
    first = x + 1
    gap = (jnp.sum(x) + jnp.sum(first) + jnp.sum(x)) / x.size  # of y = (first, x) in the equation
    return {"first": first, "second": x - gap}


def cvxcpl(dtype: Any = None, size: int = 1) -> Case:
    """The example of LV-HBA: a convex lower level with many solutions and an equation with x.

    `g = ½ ‖y_1‖² − x'y_1 + 1'y_2` subject to `1'(x + y_1 + y_2) = 0`, and
    `f = ½ ‖x − y_2‖² + ½ ‖y_1 − 1‖²`; x, y_1 and y_2 have `size` entries. The multiplier is −1,
    `y_1 = x + 1`, and any y_2 with the right sum is optimal: `y_star` is the optimistic one.
    The solution is x = −0.3, y_1 = 0.7, y_2 = −0.4 in all entries, with f = 0.05 `size`.
    """
    ones = jnp.ones(size, dtype)
    return Case(
        name="cvxcpl",
        problem=Problem(
            _apart,
            _tilted,
            lower_set=sets.Polyhedron(E=jnp.ones((1, 2 * size), dtype), d=_minus_sum),
        ),
        x0=ones,
        y0={"first": ones, "second": jnp.array(ones)},
        y_star=_kindest,
        x_star=-0.3 * ones,
        lower_mu=0.0,
        lower_L=1.0,
    )


def cvxcpl_biased(penalty: ScalarLike) -> Scalar:
    """Every entry of the fixed point of LVHBA with a constant penalty C (size 1).

    `−3 (C + 2)/(2 (5C + 6))`, for proximal weights of one: about `0.12/C` from the solution −0.3.
    """
    penalty = jnp.asarray(penalty)
    return -3 * (penalty + 2) / (2 * (5 * penalty + 6))
