"""Ridge regression with one penalty per feature, chosen on validation data.

g(x, w) = ½ ‖Aw − b‖² / n + ½ Σ_j exp(x_j) w_j²       on training data
f(x, w) = ½ ‖Aw − b‖² / n                             on validation data
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case


class Rows(NamedTuple):
    features: Float[Array, "n d"]
    target: Float[Array, " n"]


def _upper(data: Rows, x: Array, y: Array, batch: Rows | None) -> Scalar:
    features, target = data if batch is None else batch
    return jnp.mean((features @ y - target) ** 2) / 2


def _lower(data: Rows, x: Array, y: Array, batch: Rows | None) -> Scalar:
    return _upper(data, x, y, batch) + jnp.sum(jnp.exp(x) * y**2) / 2


def _system(train: Rows, x: Array) -> tuple[Array, Array]:
    """H and r of the normal equations `H w = r`."""
    A, b = train
    return A.T @ A / b.size + jnp.diag(jnp.exp(x)), A.T @ b / b.size


def _rows(dtype: Any) -> tuple[Rows, Rows]:
    """Validation and training data."""
    rng = np.random.default_rng(0)
    truth = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 1.5])
    features = rng.normal(size=(70, 6))
    target = features @ truth + 0.5 * rng.normal(size=70)
    everything = Rows(jnp.array(features, dtype), jnp.array(target, dtype))
    return Rows(*(a[40:] for a in everything)), Rows(*(a[:40] for a in everything))


def ridge(dtype: Any = None) -> Case:
    """Six features, four of which matter; 40 training and 30 validation rows, synthetic.

    `w* = H⁻¹A'b/n` with `H = A'A/n + diag exp x`, and
    `∂l/∂x_j = −exp(x_j) w*_j (H⁻¹ ∇f)_j`. No solution is known: the penalties of useful features
    may diverge to −∞, those of useless features to ∞.
    """
    validation, train = _rows(dtype)
    x0 = jnp.full(6, -1.0, dtype)
    eigenvalues = np.linalg.eigvalsh(_system(train, x0)[0])
    return Case(
        name="ridge",
        problem=Problem(Partial(_upper, validation), Partial(_lower, train)),
        x0=x0,
        y0=jnp.zeros(6, dtype),
        y_star=lambda x: jnp.linalg.solve(*_system(train, x)),
        lower_mu=float(eigenvalues[0]),
        lower_L=float(eigenvalues[-1]),
    )


def ridge_rows(dtype: Any = None) -> Case:
    """`ridge` as a finite sum over its rows: 30 upper, 40 lower."""
    return replace(ridge(dtype), name="ridge_rows", data=_rows(dtype))
