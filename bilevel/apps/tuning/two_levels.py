"""The two losses: linear models under penalties, and their loss on the rows held out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

from bilevel import trees
from bilevel.losses import RowLoss, Rows, scores
from bilevel.problem import Problem


class Sharing(NamedTuple):
    """Which coefficients share a penalty: that of feature j and output c has the number
    `(features[j], outputs[c])`."""

    features: Int[np.ndarray, " d"]
    outputs: Int[np.ndarray, " outputs"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array of all penalties."""
        return int(self.features.max()) + 1, int(self.outputs.max()) + 1


def per_feature(d: int, outputs: int = 1) -> Sharing:
    """One penalty for each of d features, shared by all outputs."""
    return Sharing(np.arange(d), np.zeros(outputs, int))


def problem(
    loss: RowLoss,
    rows: Rows,
    sharing: Sharing,
    folds: int,
    *,
    shrinkage: ScalarLike = 0.0,
    smoothing: ScalarLike = 1e-3,
    counted: Float[Any, "groups outputs"] | None = None,
) -> Problem:
    """Penalties that make the loss on held-out rows small.

    x is `{"l2": log penalties}`, with `"l1"` beside it for the elastic net, each of the shape
    `sharing.shape`. y holds a model a fold, `{"weights": (folds, d, outputs), "bias": (folds,
    outputs)}`. A batch of either level is an array (folds, n): how much each row counts in each
    fold, with sum one.

    Args:
        shrinkage: adds `½ shrinkage Σ (x − mean x)²` to the upper loss.
        smoothing: `|w|` of the elastic net is `√(w² + smoothing²)`, so that y* is differentiable.
        counted: 1 for penalties that the shrinkage is of and 0 for others; all when absent.
    """
    counted = np.ones(sharing.shape) if counted is None else counted
    data = Partial(row_losses, Partial(loss)), *map(jnp.asarray, rows)
    group, output = map(jnp.asarray, sharing)
    upper = Partial(_upper, *data, jnp.asarray(shrinkage), jnp.asarray(counted, float))
    charge = Partial(penalty, group, output, jnp.asarray(smoothing))
    lower = Partial(_lower, *data, charge)
    return Problem(upper, lower, blocks=folds)


def row_losses(
    loss: RowLoss, y: PyTree, features: Float[Array, "n d"], target: Array
) -> Float[Array, "folds n"]:
    """The loss of every row under the model of every fold."""
    return jax.vmap(lambda y: loss(scores(y, features), target))(y)


def penalty(group: Array, output: Array, smoothing: Array, x: PyTree, w: Array) -> Scalar:
    """`½ Σ exp(x₂) w² + Σ exp(x₁) |w|`, over all folds."""

    def each(log: Array) -> Array:
        return jnp.exp(log)[group][:, output][None]

    total = jnp.sum(each(x["l2"]) * w**2) / 2
    if "l1" in x:
        total += jnp.sum(each(x["l1"]) * jnp.sqrt(w**2 + smoothing.astype(w.dtype) ** 2))
    return total


def spread(x: PyTree, counted: Array) -> Scalar:
    """`Σ (x − mean x)²` over the counted penalties, with the mean of each kind."""

    def apart(log: Array) -> Array:
        weights = counted.astype(log.dtype)
        return weights * (log - jnp.sum(weights * log) / jnp.sum(weights))

    away = trees.map(apart, x)
    return trees.dot(away, away)


def _upper(losses, features, target, shrinkage, counted, x, y, batch):
    held_out = jnp.sum(batch * losses(y, features, target)) / len(batch)
    return held_out + shrinkage.astype(held_out.dtype) / 2 * spread(x, counted)


def _lower(losses, features, target, penalty, x, y, batch):
    return jnp.sum(batch * losses(y, features, target)) + penalty(x, y["weights"])
