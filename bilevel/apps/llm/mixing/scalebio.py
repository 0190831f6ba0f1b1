"""ScaleBiO: weights of data sources by a penalty, with two copies of the model.

Pan et al. "ScaleBiO: Scalable bilevel optimization for LLM data reweighting". 2024,
arXiv:2406.19976.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.mixing.mixture import RowLoss, TargetLoss, batch_losses, batch_weights
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.updates import AbstractUpdate, Each


class Copies(NamedTuple):
    """What is iterated."""

    x: Float[Array, " sources"]  # logits of the weights
    y: PyTree  # parameters of the model that minds the target
    z: PyTree  # parameters of the model that does not


def start(sources: int, y0: PyTree) -> Copies:
    """Uniform weights of so many sources (or rows), and both copies as the model is."""
    return Copies(jnp.zeros(sources, trees.widest(y0)), y0, y0)


def problem(loss: RowLoss, penalty: ScalarLike = 10.0) -> Problem:
    """`min_{x, y} max_z f(y) + α (g(x, y) − g(x, z))`, for `method`; y is an unused scalar.

    f is the mean loss on the target rows and `g(x, y) = Σ_k p_k(x) ℓ_k(y)` the mixture of the mean
    losses of the sources. A step takes one gradient of f and two of g, all in one pass and on the
    same rows of the sources, and `α p_k (Δ_k − Σ_j p_j Δ_j)`, the slope in x, comes with them: it
    needs only the losses, `Δ_k = ℓ_k(y) − ℓ_k(z)`. Its error is `O(1/α)`.

    Args:
        loss: of each row; an upper batch is a tree of rows, a lower one a tuple of them, with rows
            of every source. Or it is `mixture.Numbered`, and each row has a weight of its own; p is
            then the softmax over the rows of the batch.
        penalty: α.
    """
    return single(TargetLoss(loss), _Directions(loss, penalty))


def method(
    update: AbstractUpdate, x_update: AbstractUpdate, z_update: AbstractUpdate | None = None
) -> TTSA:
    """How both copies of the model move (z as y where it is not told), and how the logits do."""
    return TTSA(Each((x_update, update, update if z_update is None else z_update)))


class _Directions(eqx.Module):
    loss: RowLoss
    penalty: ScalarLike

    def __call__(self, v, _, batch):
        """Down in x and y, up in z. Those of y and z are divided by α, as their step sizes are."""

        def saddle(v):
            f = self.loss(v.y, batch.upper).mean()
            l_y, l_z = (batch_losses(self.loss, w, batch.lower) for w in (v.y, v.z))
            p = batch_weights(v.x, batch.lower)
            return f / jnp.asarray(self.penalty, f.dtype) + p @ (l_y - l_z)

        down = jax.grad(saddle)(v)
        return Copies(trees.scale(self.penalty, down.x), down.y, trees.scale(-1.0, down.z))
