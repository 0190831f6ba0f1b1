"""The two losses, and the samples they see."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.cleaning.digits import Labelled, Task
from bilevel.data import Data, Whole
from bilevel.problem import Problem

Scores = Callable[[PyTree, Array], Float[Array, "n classes"]]


def linear(y: PyTree, inputs: Float[Array, "n d"]) -> Float[Array, "n classes"]:
    """Scores of a linear classifier, `y = {"weights": (d, classes), "bias": (classes,)}`."""
    return inputs @ y["weights"] + y["bias"][None]


def cross_entropy(scores: Scores, y: PyTree, samples: Labelled) -> Float[Array, " n"]:
    return optax.softmax_cross_entropy_with_integer_labels(
        scores(y, samples.inputs), samples.labels
    )


def problem(scores: Scores = linear, *, decay: ScalarLike = 1e-3) -> Problem:
    """The two losses of hyper-cleaning, for any classifier `scores(y, inputs)`.

    `x` has one logit per training sample. Upper batches are `Labelled`, lower ones
    `(numbers, Labelled)`: the number of a sample finds its logit. `data` makes both.
    """
    return Problem(
        Partial(_upper_loss, Partial(scores)), Partial(_lower_loss, Partial(scores), decay)
    )


def self_paced(
    scores: Scores = linear, *, weight: ScalarLike = 2.0, decay: ScalarLike = 1e-3
) -> Problem:
    """The same with an upper loss that fewer clean samples do not overfit.

    `f = mean of CE_j over clean j + weight · mean_i sigmoid(x_i) (CE_i(y) − ½ log classes)`. The
    second term rewards a weight on samples whose label the classifier finds likely, and charges
    one on the others: with a weight a sample and a few clean ones, the first term alone can be
    made small by many weights. Upper batches are `(clean, (numbers, Labelled))`, which
    `self_paced_data` makes.

    Reference: Kumar, Packer, Koller. "Self-paced learning for latent variable models". NeurIPS
    2010. There the classifier minimises both terms; here the weights alone do.
    """
    scores = Partial(scores)
    return Problem(Partial(_self_paced_loss, scores, weight), Partial(_lower_loss, scores, decay))


def _self_paced_loss(scores, weight, x, y, batch):
    clean, (numbers, samples) = batch
    loss = cross_entropy(scores, y, samples)
    classes = scores(y, samples.inputs).shape[1]
    doubt = (weights(x)[numbers] * (loss - math.log(classes) / 2)).mean()
    return cross_entropy(scores, y, clean).mean() + jnp.asarray(weight, loss.dtype) * doubt


def _upper_loss(scores, x, y, batch):
    return cross_entropy(scores, y, batch).mean()


def _lower_loss(scores, decay, x, y, batch):
    numbers, samples = batch
    fit = (weights(x)[numbers] * cross_entropy(scores, y, samples)).mean()
    return fit + jnp.asarray(decay, fit.dtype) / 2 * trees.dot(y, y)


def data(task: Task, batch_size: int | None = None) -> Data:
    """The samples of both levels; all of them at every step when `batch_size` is absent."""
    numbers = jnp.arange(len(task.train.labels))
    return Data(upper=task.validation, lower=(numbers, task.train), batch_size=batch_size)


def self_paced_data(task: Task, batch_size: int | None = None) -> Data:
    """The samples of `self_paced`: all clean ones, and all others or some at random."""
    train = jnp.arange(len(task.train.labels)), task.train
    if batch_size is None:
        return Data(upper=Whole((task.validation, train)), lower=train)
    draw = Partial(_with_some, task.validation, train, batch_size)
    return Data(upper=draw, lower=train, batch_size=batch_size)


def _with_some(clean, train, size, key):
    rows = jax.random.randint(key, (size,), 0, len(train[0]))
    return clean, jax.tree.map(lambda leaf: leaf[rows], train)


def start(task: Task) -> tuple[Float[Array, " n"], PyTree]:
    """Every weight one half, and a linear classifier that has learned nothing."""
    n, d = task.train.inputs.shape
    classes = int(task.validation.labels.max()) + 1
    return jnp.zeros(n), {"weights": jnp.zeros((d, classes)), "bias": jnp.zeros(classes)}


def weights(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """How much each sample counts, from 0 (wrong) to 1."""
    return jax.nn.sigmoid(x)
