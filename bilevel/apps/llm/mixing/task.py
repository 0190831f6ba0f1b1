"""What training on a mixture minimises: the loss of a response, as a function of a policy."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.mixing.mixture import RowLoss
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses
from bilevel.problem import Problem


class TokenLoss(eqx.Module):
    """The mean negative log-probability of the tokens of each response."""

    policy: AbstractPolicy

    def __call__(self, y: PyTree, rows: Responses) -> Float[Array, " rows"]:
        logprobs = self.policy.token_logprobs(y, rows)
        return -logprobs.sum(axis=1) / rows.mask.sum(axis=1).astype(logprobs.dtype)


def training(loss: RowLoss) -> Problem:
    """The mean loss of a batch, for `TTSA`: x are the parameters, and y is an unused scalar."""
    return single(Mean(loss))


class Mean(eqx.Module):
    loss: RowLoss

    def __call__(self, x, batch):
        return self.loss(x, batch).mean()


def mean_loss(loss: RowLoss, rows: PyTree, of: Callable[[PyTree], PyTree]) -> Callable:
    """A metric: the mean loss on some rows under the parameters `of(x)`."""
    return Partial(_mean_loss, Partial(of), loss, rows)


def _mean_loss(of, loss, rows, x, y):
    return loss(of(x), rows).mean()


def share(part: slice, weights: Callable[[PyTree], Array]) -> Callable[[PyTree, PyTree], Scalar]:
    """A metric `(x, y) -> number`: the sum of the weights in one part of the vector."""
    return Partial(_share, Partial(weights), jnp.arange(part.start, part.stop, dtype=jnp.int32))


def _share(weights, numbers, x, y):
    return weights(x)[numbers].sum()
