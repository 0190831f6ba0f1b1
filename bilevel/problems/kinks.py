"""Lower problems under inequalities, whose active sets give the hyper-objective kinks."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel import sets
from bilevel.problem import Problem
from bilevel.problems.case import Case


def _follow(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sum((y - x) ** 2) / 2


def _against(x: Array, y: Array, batch: Any) -> Scalar:
    return (x - 1) ** 2 / 2 + 2 * y


def kink1(dtype: Any = None) -> Case:
    """`g = ½ (y − x)²` over y ≥ 0, `f = ½ (x − 1)² + 2y`: the solution is a kink.

    y* = max(x, 0) with multiplier max(−x, 0). At the solution x = 0 the hyper-objective is ½ and
    has slopes −1 and 1. With `g + q y`, `|q| < 1`, y* = max(x − q, 0) and the solution is x = q;
    averaged over q uniform in (−r, r), the gradient in `|x| ≤ r` is `x − 1 + (x + r)/r`.
    """
    return Case(
        name="kink1",
        problem=Problem(_against, _follow, lower_set=sets.Box(lo=0.0)),
        x0=jnp.array(2.0, dtype),
        y0=jnp.array(0.0, dtype),
        y_star=lambda x: jnp.maximum(x, 0),
        x_star=jnp.array(0.0, dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


def _two_targets(x: Array, y: Array, batch: Any) -> Scalar:
    a, b = jnp.array([0.0, 1.0], y.dtype), jnp.array([2.0, 0.0], x.dtype)
    return jnp.sum((y - a) ** 2) / 2 + jnp.sum((x - b) ** 2) / 2


def halfplane(dtype: Any = None) -> Case:
    """`g = ½ ‖y − x‖²` over y_0 + y_1 ≤ 1, `f = ½ ‖y − (0, 1)‖² + ½ ‖x − (2, 0)‖²`.

    y* = x − λ (1, 1), λ = max(0, (x_0 + x_1 − 1)/2). At the solution x = (5/4, 3/4) the constraint
    is active, y = (3/4, 1/4), λ = ½ and f = 9/8.
    """
    return Case(
        name="halfplane",
        problem=Problem(
            _two_targets,
            _follow,
            lower_set=sets.Polyhedron(jnp.ones((1, 2), dtype), jnp.ones(1, dtype)),
        ),
        x0=jnp.array([-2.0, 2.0], dtype),
        y0=jnp.zeros(2, dtype),
        y_star=lambda x: x - jnp.maximum(0, (jnp.sum(x) - 1) / 2),
        x_star=jnp.array([1.25, 0.75], dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


def _both(x: Array, y: Array, batch: Any) -> Scalar:
    return x + y


def _squares_apart(x: Array, y: Array, batch: Any) -> Scalar:
    return (y**2 - x**2) ** 2


def sqrtkink(dtype: Any = None) -> Case:
    """`g = (y² − x²)²` over √(3/5) ≤ y ≤ 1, `f = x + y`, x in [0, 1].

    y* = max(x, √(3/5)), with a kink at x = √(3/5). The solution is x = 0, where f = √(3/5).
    """
    lo = float(np.sqrt(0.6))
    return Case(
        name="sqrtkink",
        problem=Problem(
            _both, _squares_apart, upper_set=sets.Box(0.0, 1.0), lower_set=sets.Box(lo, 1.0)
        ),
        x0=jnp.array(0.9, dtype),
        y0=jnp.array(1.0, dtype),
        y_star=lambda x: jnp.clip(jnp.abs(x), lo, 1),
        x_star=jnp.array(0.0, dtype),
        lower_mu=8 * 0.9**2,
        lower_L=8 * 0.9**2,
    )


def _indefinite(x: Array, y: Array, batch: Any) -> Scalar:
    return x @ x / 4 + 10 * x @ y - y @ y / 4 + jnp.sum(x) + jnp.sum(y) + 1


def _pulled(x: Array, y: Array, batch: Any) -> Scalar:
    return x @ y + y @ y / 2 + x[0] + y[1]


def box14(dtype: Any = None) -> Case:
    """`g = x'y + ½ ‖y‖² + x_0 + y_1` over the box [−1, 1]², f quadratic: several local minima.

    `f = ¼ ‖x‖² + 10 x'y − ¼ ‖y‖² + 1'x + 1'y + 1` and y* = clip(−x − (0, 1)). At every local
    minimum both sides are active: y = (−1, 1), x = (18, −22), f = −201.5, which x0 leads to;
    y = (1, 1), x = (−22, −22), f = −239.5; y = (−1, −1), x = (18, 18), f = −163.5;
    y = (1, −1), x = (−22, 18), f = −201.5.
    """
    return Case(
        name="box14",
        problem=Problem(_indefinite, _pulled, lower_set=sets.Box(-1.0, 1.0)),
        x0=jnp.array([3.0, -2.5], dtype),
        y0=jnp.zeros(2, dtype),
        y_star=lambda x: jnp.clip(-x - jnp.array([0.0, 1.0], x.dtype), -1, 1),
        x_star=jnp.array([18.0, -22.0], dtype),
        lower_mu=1.0,
        lower_L=1.0,
    )


# --- drawn at random ----------------------------------------------------------------------------


def _near_one(x: Array, y: Array, batch: Any) -> Scalar:
    return jnp.sum((y - 1) ** 2) / 2 + x @ x / 2


def _quadratic(H: Array, P: Array, c: Array, x: Array, y: Array, batch: Any) -> Scalar:
    return y @ (H @ y) / 2 + x @ (P @ y) + c @ y


def _moved(B: Array, b: Array, x: Array) -> Array:
    return b - B @ x


def randqp(
    dtype: Any = None, *, upper_size: int = 3, lower_size: int = 4, rows: int = 5, seed: int = 0
) -> Case:
    """A random quadratic in y over random rows that move with x, solved by trying all active sets.

    `g = ½ y'Hy + x'Py + c'y` over `A y + B x ≤ b`, `f = ½ ‖y − 1‖² + ½ ‖x‖²`, `H = MM' + I`, all
    Gaussian but b, uniform in (0.1, 0.5). For checks of gradients: y* tries all `2^rows` active
    sets, and is differentiable within one. x has `upper_size` entries, y has
    `lower_size`; `seed` is that of the draw.
    """
    rng = np.random.default_rng(seed)
    n, m, k = upper_size, lower_size, rows
    M = rng.normal(size=(m, m))
    H, P, c = M @ M.T + np.eye(m), rng.normal(size=(n, m)), rng.normal(size=m)
    A, B, b = rng.normal(size=(k, m)), rng.normal(size=(k, n)), rng.uniform(0.1, 0.5, size=k)
    eigenvalues = np.linalg.eigvalsh(H)
    H, P, c, A, B, b = (jnp.array(a, dtype) for a in (H, P, c, A, B, b))
    masks = jnp.array(list(itertools.product([False, True], repeat=k)))

    def at(x: Array, mask: Array) -> tuple[Array, Array]:
        """The solution where the masked rows are equations, and how far it is from optimal."""
        on, right = mask.astype(x.dtype), _moved(B, b, x)
        above = jnp.concatenate([H, on[:, None] * A])
        K = jnp.concatenate([above, jnp.concatenate([(on[:, None] * A).T, jnp.diag(on - 1)])], 1)
        z = jnp.linalg.solve(K, jnp.concatenate([-c - x @ P, on * right]))
        y, dual = z[:m], z[m:]
        worst = jnp.max(jnp.concatenate([A @ y - right, -dual]), initial=0)
        return y, jnp.where(jnp.isfinite(worst), worst, jnp.inf)

    def y_star(x: Array) -> Array:
        _, worst = jax.vmap(lambda mask: at(jax.lax.stop_gradient(x), mask))(masks)
        return at(x, masks[jnp.argmin(worst)])[0]

    return Case(
        name="randqp",
        problem=Problem(
            _near_one,
            Partial(_quadratic, H, P, c),
            lower_set=sets.Polyhedron(A, Partial(_moved, B, b)),
        ),
        x0=jnp.array(0.3 * rng.normal(size=n), dtype),
        y0=jnp.zeros(m, dtype),
        y_star=y_star,
        lower_mu=float(eigenvalues[0]),
        lower_L=float(eigenvalues[-1]),
    )
