"""Lower levels with several local minima that move, meet and vanish as x moves."""

import math
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case

WELL_FOLD = 2 / (3 * math.sqrt(3))  # the wells of `well` both exist while |x| is below
FOLD_JUMP = (1 + math.sqrt(97)) / 12  # where the minimiser of `fold_jump` jumps


# --- two wells -----------------------------------------------------------------------------


def _well(x: Array, y: Array, batch: Any) -> Scalar:
    return y**4 / 4 - y**2 / 2 - x * y


def _near(at: Array, x: Array, y: Array, batch: Any) -> Scalar:
    to_x, to_y = at.astype(x.dtype)
    return (x - to_x) ** 2 / 2 + (y - to_y) ** 2 / 2


def _kinked(at: Array, x: Array, y: Array, batch: Any) -> Scalar:
    to_x, to_y = at.astype(x.dtype)
    return (x - to_x) ** 2 / 2 + jnp.abs(y - to_y)


def _branch(sign: float, x: Array) -> Array:
    """The largest root y of `y³ − y = x`, or the smallest; NaN past the fold where it ends."""
    ratio = sign * x / WELL_FOLD
    inside = jnp.abs(ratio) < 1
    near = jnp.cos(jnp.arccos(jnp.where(inside, ratio, 0)) / 3)
    far = jnp.cosh(jnp.arccosh(jnp.where(ratio > 1, ratio, 2)) / 3)
    y = 2 / math.sqrt(3) * jnp.where(inside, near, jnp.where(ratio > 1, far, jnp.nan))
    for _ in range(2):  # Newton: the last digits, and exact derivatives
        y = y - (y**3 - y - sign * x) / (3 * y**2 - 1)
    return sign * y


def _on_branch(name: str, upper: Any, at: tuple[float, float], dtype: Any) -> Case:
    sign = math.copysign(1, at[1])
    x0 = 0.0 if sign > 0 else -0.2
    start = float(_branch(sign, jnp.array(x0)))
    curvature = 3 * start**2 - 1
    return Case(
        name=name,
        problem=Problem(Partial(upper, jnp.array(at, dtype)), _well),
        x0=jnp.array(x0, dtype),
        y0=jnp.array(sign, dtype),
        y_star=Partial(_branch, sign),
        x_star=jnp.array(at[0], dtype),
        lower_mu=curvature - 1e-6,
        lower_L=curvature + 1e-6,
    )


def well_a(dtype: Any = None) -> Case:
    """`g = y⁴/4 − y²/2 − x y`, `f = ½ (y − 1.1)² + ½ (x − 0.231)²`: solution on the + branch.

    The critical points are the roots of `y³ − y = x`: for `|x| < 2/(3√3)` two minima, `y > 1/√3`
    and `y < −1/√3`, with a maximum between; at either end one minimum meets the maximum and both
    vanish (a fold). On a branch `dy/dx = 1/(3y² − 1)`. The + branch reaches f = 0 at
    (0.231, 1.1), for `1.1³ − 1.1 = 0.231`. `y_star` is that branch, NaN where it does not exist.
    """
    return _on_branch("well_a", _near, (0.231, 1.1), dtype)


def well_b(dtype: Any = None) -> Case:
    """`well_a` with `f = ½ (y + 0.9)² + ½ (x − 0.171)²`: (0.171, −0.9), on the − branch."""
    return _on_branch("well_b", _near, (0.171, -0.9), dtype)


def well_ns(dtype: Any = None) -> Case:
    """`well_a` with `f = |y − 1.1| + ½ (x − 0.231)²`: the same solution, at a kink of f."""
    return _on_branch("well_ns", _kinked, (0.231, 1.1), dtype)


# --- a fold --------------------------------------------------------------------------------


def _cubic(x: Array, y: Array, batch: Any) -> Scalar:
    return (1 - 2 * x) * y + (3 * x - 2 * x**2) * y**3


def _stationary(x: Array) -> Array:
    """`y₊(x)`, the local minimum; NaN where there is none."""
    exists = (x > 0.5) & (x < 1.5)
    inside = jnp.where(exists, x, 1)
    y = jnp.sqrt((2 * inside - 1) / (3 * inside * (3 - 2 * inside)))
    return jnp.where(exists, y, jnp.nan)


def _past_the_fold(x: Array) -> Array:
    return jnp.where(x > 0.5, _stationary(jnp.where(x > 0.5, x, 1)), 0)


def _past_the_jump(x: Array) -> Array:
    return jnp.where(x > FOLD_JUMP, _stationary(jnp.where(x > FOLD_JUMP, x, 1)), -1)


def _folding(name: str, x_set: sets.Box, y_set: sets.Box, start: tuple, dtype: Any) -> Case:
    x0, y0 = start
    y_star = _past_the_fold if name == "fold" else _past_the_jump
    curvature = 6 * (3 * x0 - 2 * x0**2) * float(y_star(jnp.array(x0)))
    at = jnp.array([1.0, 1 / math.sqrt(3)], dtype)
    return Case(
        name=name,
        problem=Problem(Partial(_near, at), _cubic, upper_set=x_set, lower_set=y_set),
        x0=jnp.array(x0, dtype),
        y0=jnp.array(y0, dtype),
        y_star=y_star,
        x_star=jnp.array(1.0, dtype),
        lower_mu=curvature - 1e-6,
        lower_L=curvature + 1e-6,
    )


def fold(dtype: Any = None) -> Case:
    """`g = (1 − 2x) y + (3x − 2x²) y³` on y in [0, 2], x in [0, 1.2]: an infinite slope at x = ½.

    The local minimum `y₊² = (2x − 1)/(3x (3 − 2x))` is born at x = ½, where its curvature
    `2 √(3x (3 − 2x)(2x − 1))` is zero; before, y* = 0, and `y*` is no better than Hölder there.
    Without bounds on y, g has no minimum for 0 < x < 3/2.
    `f = ½ (y − 1/√3)² + ½ (x − 1)²` is zero at (1, 1/√3), where `dy*/dx = √3/2`.
    """
    return _folding("fold", sets.Box(0.0, 1.2), sets.Box(0.0, 2.0), (0.8, 1.0), dtype)


def fold_jump(dtype: Any = None) -> Case:
    """`fold` on y in [−1, 1], x in [0, 1]: the minimiser jumps from −1 to +½ at x = 0.9041.

    y* is −1 for `x < (1 + √97)/12`, where both minima have g = −0.2693809890, and y₊(x) beyond.
    The hyper-objective jumps there, from 1.2486 down to 0.0076.
    """
    return _folding("fold_jump", sets.Box(0.0, 1.0), sets.Box(-1.0, 1.0), (0.5, -1.0), dtype)
