"""ScaleBiO: weights of data sources by a penalty method with two copies of the model.

Pan et al. "ScaleBiO: Scalable bilevel optimization for LLM data reweighting". 2024,
arXiv:2406.19976.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.apps.llm.data.sources import Together
from bilevel.apps.llm.methods.task import rows_of
from bilevel.data import Data
from bilevel.methods import F2SA
from bilevel.problem import Problem
from bilevel.schedules import Constant
from bilevel.updates import AbstractUpdate

Loss = Callable[[PyTree, PyTree], Scalar]  # mean loss of parameters on rows


def weights(x: Float[Array, " k"]) -> Float[Array, " k"]:
    """Share of each source: `softmax(x)`."""
    return jax.nn.softmax(x)


def problem(loss: Loss) -> Problem:
    """The two levels; x holds a logit for each source, y the parameters.

    The lower batch is a tuple with rows of every source, of which none may be missing: the loss of
    each is the mean over its own rows.
    """
    return Problem(_Trusted(loss), _Mixed(loss))


def method(update: AbstractUpdate, x_update: AbstractUpdate, penalty: ScalarLike = 10.0) -> F2SA:
    """F2SA with one step of both copies, on the same rows.

    The x step needs losses only: `λ p_k (Δ_k − Σ_j p_j Δ_j)`, where `Δ_k` is the loss of source k
    under the copy that minds the trusted samples, less that under the copy that does not. The error
    of the hypergradient is `O(1/λ)`.

    Args:
        update: of both copies of the model.
        x_update: of the logits.
        penalty: λ, weight of the mixture against the trusted samples.
    """
    return F2SA(x_update, update, update, Constant(penalty), 1)


def data(sources: Sequence[PyTree], trusted: PyTree, rows: int, trusted_rows: int) -> Data:
    """Batches with so many rows of every source, and of the trusted samples; all where fewer."""
    parts = tuple(rows_of(f"source {k}", source, rows) for k, source in enumerate(sources))
    return Data(rows_of("trusted", trusted, trusted_rows), Together(parts))


class _Trusted(eqx.Module):
    loss: Loss

    def __call__(self, x, y, batch):
        return self.loss(y, batch)


class _Mixed(eqx.Module):
    loss: Loss

    def __call__(self, x, y, batch):
        each = jnp.stack([self.loss(y, rows) for rows in batch])
        return weights(x) @ each
