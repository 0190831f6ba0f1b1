"""Several sources of rows: their losses in one pass, and batches that are fair to all of them."""

from collections.abc import Callable, Sequence

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


def weights(x: Float[Array, " sources"]) -> Float[Array, " sources"]:
    """Share of each source: `softmax(x)`."""
    return jax.nn.softmax(x)


def source_losses(loss: RowLoss, y: PyTree, batch: Sequence[PyTree]) -> Float[Array, " sources"]:
    """The mean loss of each source's rows, all of which are evaluated in one pass."""
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


def drawn(sources: Sequence[PyTree], weights: Float[Array, " sources"], rows: int) -> Drawn:
    """The sampler of so many rows a batch."""
    counts = np.array([size(source) for source in sources])
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
