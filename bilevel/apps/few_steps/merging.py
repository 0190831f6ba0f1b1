"""Concrete merging: a mask on task vectors, so that fine-tuned networks merge into one.

With `τ_i = θ_i − θ_0` and a mask m shared by the tasks, the merged network is
`θ_0 + Σ_i y_i τ_i ⊙ m / mean(m)`. The lower problem adapts the coefficients y by one step on the
entropy of the predictions (AdaMerging); the upper one learns the mask on the same entropy. No label
is used. The mask is random while it is learned, `m = sigmoid((x + logit(U)) / T)` with U uniform
and T = 0.5, and hard after it.

Tang, Shen, Luo, Ding, Hu, Du, Tao. "Concrete subspace learning based interference elimination for
multi-task model fusion". 2023, arXiv:2312.06173.

Experimental: on three tasks of handwritten digits a mask that is learned so is worse than none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from bilevel import trees
from bilevel.apps.few_steps.nets import scores
from bilevel.data import Data
from bilevel.driver import run
from bilevel.methods import BiOITD
from bilevel.problem import Problem
from bilevel.updates import FromOptax

TEMPERATURE = 0.5


class Merge(NamedTuple):
    """What is merged: a network, and what each task added to it, on a leading axis."""

    base: PyTree
    vectors: PyTree


def merge_of(base: PyTree, tuned: Sequence[PyTree]) -> Merge:
    """From the network that all were tuned from, and the tuned ones."""
    return Merge(base, trees.map(lambda b, *t: jnp.stack(t) - b[None], base, *tuned))


def merged(merge: Merge, y: Float[Array, " tasks"], mask: PyTree | None = None) -> PyTree:
    """One network; plain task arithmetic without a mask."""

    def add(base, vectors, m):
        return base + jnp.tensordot(y, vectors, axes=1) * m / jnp.maximum(m.mean(), 1e-6)

    mask = trees.map(jnp.ones_like, merge.base) if mask is None else mask
    return trees.map(add, merge.base, merge.vectors, mask)


def hard(x: PyTree) -> PyTree:
    """The mask that is likeliest: 0 or 1."""
    return trees.map(lambda logits: (logits > 0).astype(logits.dtype), x)


def problem(merge: Merge, classes: Bool[Array, "tasks classes"]) -> Problem:
    """The two losses; a batch is `(key, inputs)`, inputs `(tasks, n, d)`, the key for the mask.

    Args:
        classes: those of each task; the entropy is that of its own classes.
    """

    def entropy(x, y, batch) -> Scalar:
        key, inputs = batch
        net = merged(merge, y, _drawn(x, key))
        found = jax.vmap(scores, (None, 0))(net, inputs)
        logs = jax.nn.log_softmax(jnp.where(classes[:, None], found, -1e9))
        return -(jnp.exp(logs) * logs).sum(-1).mean()

    return Problem(entropy, entropy)


def learn(
    merge: Merge,
    inputs: Float[Array, "tasks n d"],
    classes: Bool[Array, "tasks classes"],
    *,
    coefficient: float = 0.3,
    steps: int = 200,
    step_size: float = 0.05,
    adapt: float = 1e-2,
    batch_size: int = 64,
    key: Array,
) -> tuple[PyTree, Float[Array, " tasks"]]:
    """Logits of the mask and coefficients of the tasks, from inputs without labels.

    Args:
        classes: those of each task.
        coefficient: of every task, from which the lower step starts each time.
        step_size, adapt: of Adam for the mask, and of the one lower step for the coefficients.
    """
    count, n, _ = inputs.shape

    def batch(key):
        rows, mask = jax.random.split(key)
        return mask, inputs[:, jax.random.choice(rows, n, (batch_size,), replace=False)]

    x0 = trees.map(lambda leaf: jnp.full_like(leaf, 5.0), merge.base)
    y0 = jnp.full(count, coefficient)
    method = BiOITD(FromOptax(optax.adam, step_size), y_update=adapt, lower_steps=1, warm=False)
    losses = problem(merge, classes)
    state = method.init(losses, x0, y0)
    state, _ = run(losses, method, state, data=Data(batch, batch), key=key, steps=steps)
    return state.x, state.y


def _drawn(x: PyTree, key: Array) -> PyTree:
    leaves, tree = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.nn.sigmoid((logits + jax.random.logistic(k, logits.shape, logits.dtype)) / TEMPERATURE)
        for logits, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)
