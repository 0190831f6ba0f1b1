"""Lower problems without a single, strongly convex valley: lines, waves and periods of minimisers.

If there are many lower minimisers, `y_star` is the optimistic one, with the lowest upper loss.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Scalar

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case

# --- a line of minimisers -----------------------------------------------------------------------


def _rank1_upper(x: Array, y: Array, batch: Any) -> Scalar:
    target = jnp.array([1.0, 0.0], y.dtype)
    return jnp.sum((y - target) ** 2) / 2 + (x - 3) ** 2 / 2


def _rank1_lower(x: Array, y: Array, batch: Any) -> Scalar:
    return (y[0] + y[1] - x) ** 2 / 2


def _rank1_solution(x: Array) -> Array:
    return jnp.array([1.0, 0.0], x.dtype) + (x - 1) / 2


def rank1(dtype: Any = None) -> Case:
    """A convex lower loss whose minimisers are a line: `g = ½ (y_0 + y_1 − x)²`.

    `f = ½ ‖y − (1, 0)‖² + ½ (x − 3)²`. The optimistic y is `(1, 0) + ½ (x − 1) (1, 1)`, so
    `l = ¼ (x − 1)² + ½ (x − 3)²`, least at x = 7/3 with y = (5/3, 2/3) and l = 2/3.
    """
    return Case(
        name="rank1",
        problem=Problem(_rank1_upper, _rank1_lower),
        x0=jnp.array(0.0, dtype),
        y0=jnp.zeros(2, dtype),
        y_star=_rank1_solution,
        x_star=jnp.array(7 / 3, dtype),
        lower_mu=0.0,
        lower_L=2.0,
    )


def rank1_penalised(penalty: float) -> tuple[float, np.ndarray]:
    """The minimiser (x, y) of the penalised problem `f + penalty (g − min g)` for `rank1`.

    Its x exceeds the solution 7/3 by `2/(9 penalty + 3)`; at this point
    `y_0 + y_1 − x = −2/(3 penalty + 1)`, and the gap `g − min g` is `2/(3 penalty + 1)²`. If the
    penalty term is `½ penalty ‖∇_y g‖²` instead, the minimiser is the one for twice the penalty.
    """
    x = 7 / 3 + 2 / (9 * penalty + 3)
    return x, np.array([1.0, 0.0]) + 2 * penalty / (3 * penalty + 1)


def rank1_moreau(penalty: float) -> tuple[float, np.ndarray]:
    """Likewise of `f + penalty (g − e)`, e the Moreau envelope of `g(x, ·)` at y, of parameter 1.

    x is `2/(3 (2 penalty + 1))` off and `y_0 + y_1 − x = −2/(2 penalty + 1)`.
    """
    x = 7 / 3 + 2 / (3 * (2 * penalty + 1))
    return x, np.array([1.0, 0.0]) + (x - 1 - 2 / (2 * penalty + 1)) / 2


# --- a nonconvex valley -------------------------------------------------------------------------


def _plsin_upper(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.cos(4 * y + 2) / (1 + jnp.exp(2 - 4 * x)) + jnp.log((4 * x - 2) ** 2 + 1) / 2


def _plsin_lower(x: Array, y: Array, batch: Any) -> Scalar:
    return (x + y) ** 2 + x * jnp.sin(x + y) ** 2


def _minus(x: Array) -> Array:
    return -x


def plsin(dtype: Any = None) -> Case:
    """A nonconvex lower loss with one minimiser, y = −x: it grows as fast as its squared gradient.

    `g = (x + y)² + x sin²(x + y)` (Polyak-Łojasiewicz), x in [0, 3] and
    `f = cos(4y + 2)/(1 + exp(2 − 4x)) + ½ log((4x − 2)² + 1)`. Local minima of
    `l = cos(2 − 4x)/(1 + exp(2 − 4x)) + ½ log((4x − 2)² + 1)` at 0.3823600748 (0.4427057224),
    1.2151454755 (0.1999108877, the least, `x_star`) and 2.8296418059 (1.2434582728).
    From the paper of V-PBGD, arXiv:2302.05185.
    """
    return Case(
        name="plsin",
        problem=Problem(_plsin_upper, _plsin_lower, upper_set=sets.Box(0.0, 3.0)),
        x0=jnp.array(1.0, dtype),
        y0=jnp.array(-1.5, dtype),
        y_star=_minus,
        x_star=jnp.array(1.2151454754759206, dtype),
        lower_mu=4.0,  # at the minimiser; negative elsewhere
        lower_L=4.0,
    )


# --- infinitely many valleys --------------------------------------------------------------------

SINE_X = 3 * np.pi / 4  # the solution of `sine`


def _sine_upper(x: Array, y: Array, batch: Any) -> Scalar:
    return (x - 2) ** 2 + (y - 4) ** 2


def _sine_lower(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sin(x + y - 2)


def _sine_solution(x: Array) -> Array:
    nearest = jnp.round((x + 2 - 1.5 * jnp.pi) / (2 * jnp.pi))
    return 2 - x + 1.5 * jnp.pi + 2 * jnp.pi * nearest


def sine(dtype: Any = None) -> Case:
    """Infinitely many lower minimisers, a period apart: `g = sin(x + y − 2)`.

    `f = (x − 2)² + (y − 4)²`, and `y = 2 − x + 3π/2 + 2πj` for whole j. Optimistic answer
    x = 3π/4, y = 2 + 3π/4 with `l = 2 (3π/4 − 2)²`. From the paper of BVFSM, arXiv:2110.04974.
    """
    return Case(
        name="sine",
        problem=Problem(_sine_upper, _sine_lower),
        x0=jnp.array(3.0, dtype),
        y0=jnp.array(3.0, dtype),
        y_star=_sine_solution,
        x_star=jnp.array(SINE_X, dtype),
        lower_mu=1.0,  # at every minimiser; negative elsewhere
        lower_L=1.0,
    )


def sine_penalised(penalty: float) -> float:
    """The error of x, and also of y, of the minimiser of `f + penalty (g + 1)` on `sine`.

    With x = 2 + t and y = 4 + t, t solves `2t + penalty cos(2t + 4) = 0`.
    """
    t = SINE_X - 2
    for _ in range(20):
        slope = 2 - 2 * penalty * np.sin(2 * t + 4)
        t = t - (2 * t + penalty * np.cos(2 * t + 4)) / slope
    return float(t - (SINE_X - 2))
