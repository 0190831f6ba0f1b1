"""Linear lower levels, whose solution jumps, so that barriers and penalties behave differently.

The closed forms show what barrier and penalty methods minimise instead of `l`.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Scalar, ScalarLike

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case


def _first_entry(x: Array, y: Array, batch: Any) -> Scalar:
    return y[0]


def _tilted(x: Array, y: Array, batch: Any) -> Scalar:
    return x * y[0] + y[1]


def _follower(x: Array) -> Array:
    return jnp.stack([-jnp.sign(x), jnp.zeros_like(x)])


def lpjump(dtype: Any = None) -> Case:
    """The talk's jump: `f = y_1`, `g = x y_1 + y_2` over `|y_1| ≤ 1`, `y_2 ≥ 0`.

    `y* = (−sign x, 0)`, so `l = −sign x`. At x = 0 all of [−1, 1] × {0} is optimal: l is −1 there
    in the optimistic case, +1 in the pessimistic case (`y_star` is 0, the middle).
    """
    lo, hi = jnp.array([-1.0, 0.0], dtype), jnp.array([1.0, jnp.inf], dtype)
    return Case(
        name="lpjump",
        problem=Problem(_first_entry, _tilted, lower_set=sets.Box(lo, hi)),
        x0=jnp.array(1.0, dtype),
        y0=jnp.array([0.0, 1.0], dtype),
        y_star=_follower,
        lower_mu=0.0,
        lower_L=0.0,
    )


def lpjump_barrier(x: Array, t: ScalarLike) -> Array:
    """`y_t(x) = (−x/(t + √(t² + x²)), t)`, the minimiser with the log barrier; `l_t` is entry 0.

    `l_t(0) = 0` and `l_t'(0) = −1/(2t)` for every t: at the jump l_t does not converge to l.
    """
    t = jnp.asarray(t, x.dtype)
    return jnp.stack([-x / (t + jnp.sqrt(t**2 + x**2)), t])


def lpjump_penalty(x: Array, s: ScalarLike) -> Scalar:
    """`min f + (g − v)/s` over the lower set: a ramp from +1 at x = −s to −1 at 0."""
    return jnp.clip(-1 - 2 * x / jnp.asarray(s, x.dtype), -1, 1)


def _first_entry_and_square(x: Array, y: Array, batch: Any) -> Scalar:
    return y[0] + (x + 0.5) ** 2 / 2


def lpjump_q(dtype: Any = None) -> Case:
    """`lpjump` with `f = y_1 + (x + ½)²/2`.

    The optimistic minimum −7/8 is at the jump x = 0, and l tends to it from the right. The
    pessimistic problem has no minimiser. The minimiser of `l_t` is about √(2t) away.
    """
    case = lpjump(dtype)
    problem = Problem(_first_entry_and_square, _tilted, lower_set=case.problem.lower_set)
    return replace(case, name="lpjump_q", problem=problem)


def _revenue(x: Array, y: Array, batch: Any) -> Scalar:
    return -x * y


def _cost(x: Array, y: Array, batch: Any) -> Scalar:
    return (1 + x) * y + 3 * (1 - y)


def toll(dtype: Any = None) -> Case:
    """A toll x on one of two roads: `f = −x y`, `g = (1 + x) y + 3 (1 − y)` over `0 ≤ y ≤ 1`.

    All traffic y takes the road for x < 2 and none for x > 2: `l = −x`, then 0. The optimistic
    minimum −2 is at the jump x = 2; the pessimistic problem has no minimiser.
    """
    return Case(
        name="toll",
        problem=Problem(
            _revenue, _cost, upper_set=sets.Box(0.0, 5.0), lower_set=sets.Box(0.0, 1.0)
        ),
        x0=jnp.array(1.0, dtype),
        y0=jnp.array(0.5, dtype),
        y_star=lambda x: (1 - jnp.sign(x - 2)) / 2,
        lower_mu=0.0,
        lower_L=0.0,
    )


def toll_barrier(x: Array, t: ScalarLike) -> Scalar:
    """`y_t(x) = 2t/(s + 2t + √(s² + 4t²))`, `s = x − 2`, the minimiser with the log barrier."""
    t, s = jnp.asarray(t, x.dtype), x - 2
    return 2 * t / (s + 2 * t + jnp.sqrt(s**2 + 4 * t**2))


def _far_from(x: Array, y: Array, batch: Any) -> Scalar:
    return x - 4 * y


def _itself(x: Array, y: Array, batch: Any) -> Scalar:
    return y


def _four_sides(x: Array) -> Array:
    return jnp.stack([x - 3, 2 * x, 12 - 2 * x, 4 - 3 * x])


def bardlp(dtype: Any = None) -> Case:
    """A linear bilevel program whose lower set vanishes at both ends of `1 ≤ x ≤ 4`.

    `f = x − 4y`, `g = y` over `3 − x ≤ y`, `y ≤ 2x`, `y ≤ 12 − 2x`, `3x − 4 ≤ 2y`:
    `y* = max(3 − x, (3x − 4)/2)`. l falls towards x = 1, where it is −7, and towards the solution
    x = 4, where it is −12; between them is a kink, at x = 2. A method that needs an interior
    should keep x inside `Box(1.001, 3.999)`: see `bardlp_inside`.
    """
    columns = jnp.array([[-1.0], [1.0], [1.0], [-2.0]], dtype)
    return Case(
        name="bardlp",
        problem=Problem(
            _far_from,
            _itself,
            upper_set=sets.Box(1.0, 4.0),
            lower_set=sets.Polyhedron(columns, _four_sides),
        ),
        x0=jnp.array(3.0, dtype),
        y0=jnp.array(4.0, dtype),
        y_star=lambda x: jnp.maximum(3 - x, (3 * x - 4) / 2),
        x_star=jnp.array(4.0, dtype),
        lower_mu=0.0,
        lower_L=0.0,
    )


def bardlp_inside(dtype: Any = None) -> Case:
    """`bardlp` with x in [1.001, 3.999], where the lower set has an interior."""
    case = bardlp(dtype)
    problem = Problem(
        case.problem.upper,
        case.problem.lower,
        upper_set=sets.Box(1.001, 3.999),
        lower_set=case.problem.lower_set,
    )
    x_star = jnp.array(3.999, dtype)
    return replace(case, name="bardlp_inside", problem=problem, x_star=x_star)
