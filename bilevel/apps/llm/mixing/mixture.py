"""Several sources of rows: their losses in one pass, and batches that are fair to all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bilevel.apps.llm.data.sources import Together
from bilevel.apps.llm.methods.task import rows_of
from bilevel.apps.llm.policies.policy import size
from bilevel.data import Data
from bilevel.typing import RandomKey

RowLoss = Callable[[PyTree, PyTree], Float[Array, " rows"]]  # of parameters, on each row


class Numbered(NamedTuple):
    """A batch in which each row has a weight of its own."""

    rows: PyTree[Array]
    number: Int[Array, " rows"]  # of each row, among the rows of all sources


Rows = Sequence[PyTree] | Numbered  # of every source, or some of all


def weights(x: Float[Array, " sources"]) -> Float[Array, " sources"]:
    """Share of each source (or row): `softmax(x)`."""
    return jax.nn.softmax(x)


def batch_weights(x: Float[Array, " sources"], batch: Rows) -> Float[Array, " losses"]:
    """Weights of `batch_losses`; those of numbered rows are relative to the rows of the batch."""
    return weights(x[batch.number] if isinstance(batch, Numbered) else x)


def batch_losses(loss: RowLoss, y: PyTree, batch: Rows) -> Float[Array, " losses"]:
    """The mean loss of each source's rows, or the loss of each row; evaluated in one pass."""
    if isinstance(batch, Numbered):
        return loss(y, batch.rows)
    return loss(y, together(batch)).reshape(len(batch), -1).mean(axis=1)


class TargetLoss(eqx.Module):
    """The mean loss of the model `v.y` on rows of the target."""

    loss: RowLoss

    def __call__(self, v, batch):
        return self.loss(v.y, batch).mean()


def data(sources: Sequence[PyTree], target: PyTree, rows: int, target_rows: int) -> Data:
    """Batches with so many rows of every source, and of the target.

    A source with fewer rows is repeated: one that a batch lacks would have no say in that step.
    """
    parts = tuple(
        rows_of(f"source {k}", _at_least(rows, source), rows) for k, source in enumerate(sources)
    )
    return Data(rows_of("target", target, target_rows), Together(parts))


def row_data(sources: Sequence[PyTree], target: PyTree, rows: int, target_rows: int) -> Data:
    """Batches with so many numbered rows of all sources together, and of the target."""
    every = together(sources)
    numbered = Numbered(every, jnp.arange(size(every), dtype=jnp.int32))
    return Data(rows_of("target", target, target_rows), rows_of("sources", numbered, rows))


def _at_least(rows: int, source: PyTree) -> PyTree:
    times = -(-rows // size(source))
    return source if times == 1 else together([source] * times)


class Drawn(eqx.Module):
    """A sampler `key -> rows`: sources in proportion to weights, rows of each at random.

    The number of rows of a source differs from its share of the batch by less than one.
    """

    rows: PyTree[Array]  # source after source
    starts: Int[Array, " sources"]
    counts: Int[Array, " sources"]
    weights: Float[Array, " sources"]
    size: int = eqx.field(static=True)

    def __call__(self, key: RandomKey) -> PyTree[Array]:
        first, second = jax.random.split(key)
        edges = jnp.cumsum(self.weights)
        at = (
            jax.random.uniform(first, (), edges.dtype) + jnp.arange(self.size, dtype=edges.dtype)
        ) * edges[-1]
        source = jnp.searchsorted(edges[:-1], at / self.size, side="right")
        row = jax.random.randint(second, (self.size,), 0, self.counts[source], jnp.int32)
        return jax.tree.map(lambda leaf: leaf[self.starts[source] + row], self.rows)


def drawn(sources: Sequence[PyTree], weights: Float[Array, " weights"], rows: int) -> Drawn:
    """The sampler of so many rows a batch.

    Args:
        weights: one for each source, or one for each row of all of them.
    """
    counts = np.array([size(source) for source in sources])
    counts = counts if len(weights) == len(counts) else np.ones(counts.sum(), int)
    starts = np.cumsum(counts) - counts
    return Drawn(
        together(sources),
        jnp.asarray(starts, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.asarray(weights, jnp.float32),
        rows,
    )


def together(parts: Sequence[PyTree]) -> PyTree:
    """Rows of all parts in one tree."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
