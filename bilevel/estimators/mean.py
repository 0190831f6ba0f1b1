"""The mean of an estimand over several samples, used as the large sample of a restart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel import oracles, trees
from bilevel.problem import RepeatedBatch, Samples


def mean_over(estimand: Callable[[Any], PyTree], samples: Samples, r: int) -> PyTree:
    """`(1/r) Σ_{i<r} D(samples[i])`, sample by sample; one evaluation for a `RepeatedBatch`.

    Args:
        estimand: `D`, a function of the sample only. Fix the point first, as in
            `mean_over(lambda s: estimand(point, s), samples, r)`.
        samples: with the order "epochs" and r · batch_size rows of data, this is the mean over all
            rows.
    """
    if r == 1 or isinstance(samples, RepeatedBatch):
        return estimand(samples[0])
    with oracles.uncounted():
        shapes = jax.eval_shape(estimand, samples[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(mean, i):
        return trees.axpy(1 / r, estimand(samples[i]), mean), None

    wide = jax.tree.map(lambda leaf: leaf.astype(trees.widest(leaf)), zeros)
    mean, _ = jax.lax.scan(body, wide, jnp.arange(r))
    return trees.cast_like(mean, zeros)
