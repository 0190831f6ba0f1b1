"""DoGE: weights that grow with the alignment of a source's gradient and the target's.

Fan, Pagliardini, Jaggi. "DoGE: domain reweighting with generalization estimation". ICML 2024,
arXiv:2310.15393.
Differs from the paper: gradients of the sources are not clipped, and weights are not smoothed.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.mixing.mixture import RowLoss, TargetLoss, weights
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.schedules import Polynomial
from bilevel.updates import SGD, AbstractUpdate, Each

MOST = 5.0  # the largest score, in units of the rate


class Online(NamedTuple):
    """What is iterated."""

    x: Float[Array, " sources"]  # logits of the weights
    mean: Float[Array, " sources"]  # mean weights of all steps, which DoGE reports
    y: PyTree  # parameters of the model


def start(sources: int, y0: PyTree) -> Online:
    """Uniform weights, and the model as it is."""
    none = jnp.zeros(sources, trees.widest(y0))
    return Online(none, weights(none), y0)


def problem(loss: RowLoss, rate: ScalarLike = 0.02) -> Problem:
    """`x ← x + rate · ⟨G_k, G⟩ / mean_j ‖G_j‖`, for `method`; the problem's y is an unused scalar.

    G_k is the gradient on source k and G that on the target. The model moves along `Σ_k p_k G_k`.
    There is no second level. A step holds a gradient for each source.

    Args:
        loss, batches: as for `scalebio.problem`.
        rate: step size of the paper over its μ; scores lie between 0 and 5.
    """
    return single(TargetLoss(loss), _Directions(loss, rate))


def method(update: AbstractUpdate) -> TTSA:
    """How the model moves."""
    mean = SGD(Polynomial(1.0, 1.0))  # of all steps: m ← m − (m − p)/(k + 1)
    return TTSA(Each((SGD(1.0), mean, update)))


class _Directions(eqx.Module):
    loss: RowLoss
    rate: ScalarLike

    def __call__(self, v, _, batch):
        slope = jax.grad(lambda y, rows: self.loss(y, rows).mean())
        each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch.lower)
        G, g = jax.vmap(slope, (None, 0))(v.y, each), slope(v.y, batch.upper)
        inner, norms = jax.vmap(trees.dot, (0, None))(G, g), jax.vmap(trees.norm)(G)
        score = jnp.clip(inner / (norms.mean() + 1e-6), 0, MOST)
        gain = trees.scale(self.rate, score)
        p = weights(v.x + gain)
        y = jax.tree.map(lambda leaf: jnp.tensordot(p.astype(leaf.dtype), leaf, 1), G)
        return Online(-gain, v.mean - p, y)
