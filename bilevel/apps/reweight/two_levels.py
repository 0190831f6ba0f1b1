"""The two losses, and batches with the same number of rows from every source."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from bilevel import trees
from bilevel.losses import RowLoss, Rows, scores
from bilevel.problem import Problem
from bilevel.typing import RandomKey


class Sources(NamedTuple):
    """Rows to train on, and the source of each, numbered from 0."""

    rows: Rows
    source: Int[np.ndarray, " n"]

    @property
    def number(self) -> int:
        return int(self.source.max()) + 1


def problem(loss: RowLoss, *, decay: ScalarLike = 1e-3) -> Problem:
    """Weights of sources that make the loss on validation rows small.

    x has a logit for each source; y is a linear model of `bilevel.losses`. An upper batch is `Rows`
    (m, d), (m,); a lower batch has a leading axis of sources, (K, m, d), (K, m), or is
    `Weighted` rows.
    """
    return Problem(
        Partial(_upper, Partial(loss)), Partial(_lower, Partial(loss), jnp.asarray(decay, float))
    )


class Weighted(NamedTuple):
    """All rows of all sources: each counts `1/(rows of its source)`."""

    rows: Rows
    shares: Float[Array, "sources n"]  # with sum one in each source


class Stratified(eqx.Module):
    """A sampler `key -> Rows` of `size` rows of every source, drawn with replacement."""

    rows: Rows  # source after source
    starts: Int[Array, " sources"]
    counts: Int[Array, " sources"]
    size: int = eqx.field(static=True)

    def __call__(self, key: RandomKey) -> Rows:
        shape = (len(self.counts), self.size)
        numbers = self.starts[:, None] + jax.random.randint(key, shape, 0, self.counts[:, None])
        return trees.map(lambda leaf: leaf[numbers], self.rows)


def stratified(sources: Sources, size: int) -> Stratified:
    """The sampler of a table's sources."""
    order, counts = np.argsort(sources.source, kind="stable"), np.bincount(sources.source)
    rows = Rows(*(jnp.asarray(part[order]) for part in sources.rows))
    return Stratified(rows, jnp.asarray(np.cumsum(counts) - counts), jnp.asarray(counts), size)


def everything(sources: Sources) -> Weighted:
    """All rows, for exact answers."""
    member = sources.source == np.arange(sources.number)[:, None]
    shares = member / member.sum(1, keepdims=True)
    return Weighted(Rows(*map(jnp.asarray, sources.rows)), jnp.asarray(shares))


def source_losses(loss: RowLoss, y: PyTree, batch: Rows | Weighted) -> Float[Array, " sources"]:
    """The mean loss of each source."""
    if isinstance(batch, Weighted):
        return batch.shares @ loss(scores(y, batch.rows.features), batch.rows.target)
    return jax.vmap(lambda rows: loss(scores(y, rows.features), rows.target).mean())(batch)


def _upper(loss, x, y, batch):
    return loss(scores(y, batch.features), batch.target).mean()


def _lower(loss, decay, x, y, batch):
    fit = jnp.sum(jax.nn.softmax(x) * source_losses(loss, y, batch))
    return fit + decay.astype(fit.dtype) / 2 * trees.dot(y, y)
