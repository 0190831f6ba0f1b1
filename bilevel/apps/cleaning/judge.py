"""How good a cleaning is: accuracy, wrong labels found, and what to compare with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike

from bilevel.apps.cleaning.digits import Labelled, Task
from bilevel.apps.cleaning.losses import Scores, linear, problem, start
from bilevel.lower import NewtonCG


def accuracy(y: PyTree, samples: Labelled, scores: Scores = linear) -> Scalar:
    """Share of samples whose largest score is that of their label."""
    return jnp.mean(jnp.argmax(scores(y, samples.inputs), axis=1) == samples.labels)


class Detection(NamedTuple):
    """Wrong labels found, against those there are."""

    precision: float  # of the samples detected, how many are wrong
    recall: float  # of the wrong samples, how many are detected
    f1: float  # harmonic mean of the two


def detection(x: Float[Array, " n"], wrong: Bool[np.ndarray, " n"]) -> Detection:
    """Compare the samples of weight below one half with the wrong ones."""
    detected, wrong = np.asarray(x) < 0, np.asarray(wrong)
    hits, found, there = (int(mask.sum()) for mask in (detected & wrong, detected, wrong))
    nothing = float("nan")
    return Detection(
        precision=hits / found if found else nothing,
        recall=hits / there if there else nothing,
        f1=2 * hits / (found + there) if there else nothing,
    )


def train(
    samples: Labelled,
    y0: PyTree,
    scores: Scores = linear,
    decay: ScalarLike = 1e-3,
    keep: Bool[Array, " n"] | Bool[np.ndarray, " n"] | None = None,
) -> PyTree:
    """The classifier that these samples give at weight one: the lower problem, solved.

    Args:
        keep: which samples count; all when absent.
    """
    n = len(samples.labels)
    keep = jnp.ones(n, bool) if keep is None else jnp.asarray(keep)
    return _solved(Partial(scores), samples, y0, jnp.asarray(decay), keep)


@jax.jit
def _solved(scores, samples, y0, decay, keep):
    lower = problem(scores, decay=decay * keep.mean())  # the mean of its loss is over all rows
    x, batch = jnp.where(keep, jnp.inf, -jnp.inf), (jnp.arange(len(keep)), samples)
    return NewtonCG(tol=1e-5, max_steps=300).solve(lower, x, y0, batch).y  # sigmoid(±inf) = 1, 0


def retrain(
    task: Task,
    x: Float[Array, " n"],
    y0: PyTree,
    scores: Scores = linear,
    decay: ScalarLike = 1e-3,
) -> PyTree:
    """The classifier trained anew on the samples of weight above one half and the clean ones."""
    keep = jnp.concatenate([x > 0, jnp.ones(len(task.validation.labels), bool)])
    both = jax.tree.map(lambda *rows: jnp.concatenate(rows), task.train, task.validation)
    return train(both, y0, scores, decay, keep)


def references(task: Task) -> dict[str, float]:
    """Test accuracies to compare with: without cleaning, without training data, labels known."""
    y0 = start(task)[1]
    of = {
        "all data": train(task.train, y0),
        "validation only": train(task.validation, y0),
        "oracle": train(task.train, y0, keep=~task.wrong),
    }
    return {name: float(accuracy(y, task.test)) for name, y in of.items()}
