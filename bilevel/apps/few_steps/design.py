"""BIB: a sequence is designed by gradient steps, along a balance of two losses that is learned.

The lower variable y is a relaxed sequence: logits of every letter at every place. With the kernel
ridge regression of the known sequences, `forward` asks that the design is predicted to have a high
score, and `backward` that it, with that score, explains the known ones:

    f(x, y) = −(score of y by an auxiliary regressor)
    g(x, y) = sigmoid(x) · forward(y) + (1 − sigmoid(x)) · backward(y)

Chen, Zhang, Liu, Coates. "Bidirectional learning for offline model-based biological sequence
design". ICML 2023, arXiv:2301.02931. Differs from the paper: k-mer features in the place of a
language model's, and a linear regressor of all pairs of letters as the auxiliary one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from bilevel.driver import run
from bilevel.methods import BiOITD
from bilevel.problem import Problem


class Known(NamedTuple):
    """Sequences whose score was measured, standardised scores, and the score to aim at."""

    sequences: Float[Array, "n places letters"]  # one-hot
    scores: Float[Array, " n"]
    goal: Scalar


def known(letters: Int[Array, "n places"], scores: Float[Array, " n"], *, above: float = 2.0):
    """One-hot sequences; the goal is `above` standard deviations above the best score."""
    scores = (scores - scores.mean()) / scores.std()
    one_hot = jax.nn.one_hot(letters, int(letters.max()) + 1)
    return Known(one_hot, scores, scores.max() + above)


def kmers(sequences: Float[Array, "n places letters"]) -> Float[Array, "n features"]:
    """Letters, and pairs of neighbours, at each place; of length 1."""
    pairs = jnp.einsum("npa,npb->npab", sequences[:, :-1], sequences[:, 1:])
    n = len(sequences)
    features = jnp.concatenate([sequences.reshape(n, -1), pairs.reshape(n, -1)], 1)
    return features / jnp.sqrt(features.shape[1])


def all_pairs(sequences: Float[Array, "n places letters"]) -> Float[Array, "n features"]:
    """Letters, and pairs of letters at any two places."""
    flat = sequences.reshape(len(sequences), -1)
    i, j = jnp.triu_indices(flat.shape[1], 1)
    return jnp.concatenate([flat, flat[:, i] * flat[:, j]], 1)


def problem(data: Known, *, ridge: float = 1e-2, auxiliary: float = 10.0) -> Problem:
    """The two losses; x is one logit, y has the shape `(places, letters)`. No batches."""
    features, wide = kmers(data.sequences), all_pairs(data.sequences)
    n = len(features)
    eye = jnp.eye(n)
    coefficients = features.T @ jnp.linalg.solve(features @ features.T + ridge * eye, data.scores)
    judge = wide.T @ jnp.linalg.solve(wide @ wide.T + auxiliary * eye, data.scores)

    def relaxed(y):
        return jax.nn.softmax(y, axis=-1)[None]

    def upper(x, y, batch):
        return -(all_pairs(relaxed(y))[0] @ judge)

    def lower(x, y, batch):
        own = kmers(relaxed(y))[0]
        forward = (data.goal - own @ coefficients) ** 2 / 2
        explained = features @ own * data.goal / (own @ own + ridge)
        backward = ((data.scores - explained) ** 2).mean() / 2
        balance = jax.nn.sigmoid(x)
        return balance * forward + (1 - balance) * backward

    return Problem(upper, lower)


def design(
    data: Known, *, steps: int = 300, step_size: float = 1.0, balance_step: float = 0.5
) -> tuple[Int[Array, " places"], Float[Array, ""]]:
    """The sequence reached from the best one known, and the balance that was learned.

    Args:
        steps: of x, each with one lower step.
        step_size, balance_step: of y and of x.
    """
    y0 = 2 * data.sequences[data.scores.argmax()]
    method = BiOITD(x_update=balance_step, y_update=step_size, lower_steps=1)
    losses = problem(data)
    state, _ = run(losses, method, method.init(losses, jnp.zeros(()), y0), steps=steps)
    return state.y.argmax(-1), jax.nn.sigmoid(state.x)
