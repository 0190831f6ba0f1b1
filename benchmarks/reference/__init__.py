"""The same algorithms by hand: plain JAX, one jitted function with one scan, nothing of ours.

Each takes the losses, the variables and data that `shuffle` has put in a random order, reads
contiguous slices of it, and keeps the same few scalars a step; `log=False` keeps none.
"""

import jax
import jax.numpy as jnp


def shuffle(key, data, batch_size: int):
    """Rows in a random order, the first few again at the end: a slice never runs out."""
    n = jax.tree.leaves(data)[0].shape[0]
    order = jax.random.permutation(key, n)
    order = jnp.concatenate([order, order[: batch_size - 1]])
    return jax.tree.map(lambda a: a[order], data)


def take(data, at, batch_size: int):
    """The batch of shuffled data that starts at a row, round and round."""
    n = jax.tree.leaves(data)[0].shape[0] - (batch_size - 1)
    start = at % n
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, batch_size), data)


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def move(tree, step_size, direction):
    return jax.tree.map(lambda p, d: p - step_size * d, tree, direction)
