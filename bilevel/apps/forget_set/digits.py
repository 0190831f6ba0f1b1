"""An example with a known answer: digits, some of them twice, and a model that memorises."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from bilevel.files import needs


class Digits(NamedTuple):
    """Samples that may be chosen, and the copies of some of them, which always stay."""

    features: Float[Array, "n p"]
    labels: Int[Array, " n"]
    wrong_labels: Int[Array, " n"]  # what unlearning teaches in place of the labels
    copied: Bool[np.ndarray, " n"]  # which of them have a copy

    def losses(self) -> Partial:
        return Partial(cross_entropy, self.features, self.labels)

    def forgetting(self) -> Partial:
        return Partial(cross_entropy, self.features, self.wrong_labels)

    def rest(self) -> Partial:
        """The loss of the copies."""
        return Partial(_sum, jnp.asarray(self.copied), self.features, self.labels)


def digits(n: int = 1000, copies: int = 200, width: int = 1000, seed: int = 0) -> Digits:
    """Digits through random cosines, `cos(Ax + b)`, narrow enough to memorise single samples.

    A copied sample stays predictable when it is forgotten, since its copy remains. Choosing the
    copied samples is the worst case.

    Raises:
        ImportError: scikit-learn, which holds the data, is not installed.
    """
    datasets = needs("sklearn.datasets", extra="demo", what="the digits")
    images, labels = datasets.load_digits(return_X_y=True)
    draw = np.random.default_rng(seed)
    rows = draw.permutation(len(labels))[:n]
    frequencies = draw.normal(scale=np.sqrt(30 / 8), size=(64, width))
    waves = np.cos(images[rows] / 16 @ frequencies + draw.uniform(0, 2 * np.pi, width))
    copied = np.zeros(n, bool)
    copied[draw.choice(n, copies, replace=False)] = True
    wrong = (labels[rows] + draw.integers(1, 10, n)) % 10
    return Digits(
        jnp.asarray(5 * np.sqrt(2 / width) * waves),
        jnp.asarray(labels[rows]),
        jnp.asarray(wrong),
        copied,
    )


def train(samples: Digits, steps: int = 150) -> Float[Array, "p 10"]:
    """The original model: gradient descent on all samples and the copies."""
    losses, rest, n = samples.losses(), samples.rest(), len(samples.labels)

    def loss(w):
        return (losses(w).sum() + rest(w)) / n + 5e-4 * jnp.sum(w**2)

    start = jnp.zeros((samples.features.shape[1], 10))
    return jax.jit(lambda: jax.lax.fori_loop(0, steps, lambda _, w: w - jax.grad(loss)(w), start))()


def cross_entropy(features: Array, labels: Array, w: Array) -> Float[Array, " n"]:
    return optax.softmax_cross_entropy_with_integer_labels(features @ w, labels)


def _sum(mask: Array, features: Array, labels: Array, w: Array) -> Array:
    return jnp.sum(jnp.where(mask, cross_entropy(features, labels, w), 0))
