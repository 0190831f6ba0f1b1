"""How good a cleaning is: accuracy, wrong labels found, and what to compare with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Scalar
from scipy.optimize import minimize

from bilevel.apps.cleaning.digits import Labelled, Task
from bilevel.apps.cleaning.losses import Scores, linear, problem, start


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


def train(samples: Labelled, y0: PyTree, scores: Scores = linear, decay: float = 1e-3) -> PyTree:
    """The classifier that all these samples at weight one give: the lower problem by L-BFGS."""
    n = len(samples.labels)
    batch = jnp.arange(n), samples
    flat, unravel = ravel_pytree(y0)
    lower, x = problem(scores, decay=decay).lower, jnp.full(n, jnp.inf)  # sigmoid(inf) = 1
    value_and_grad = jax.jit(jax.value_and_grad(lambda flat: lower(x, unravel(flat), batch)))

    def on_host(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(jnp.asarray(point, flat.dtype))
        return float(value), np.asarray(grad, np.float64)

    options = {"maxiter": 1000, "gtol": 1e-5}
    found = minimize(on_host, np.asarray(flat), jac=True, method="L-BFGS-B", options=options)
    return unravel(jnp.asarray(found.x, flat.dtype))


def references(task: Task) -> dict[str, float]:
    """Test accuracies to compare with: without cleaning, without training data, labels known."""
    right = ~task.wrong
    of = {
        "all data": task.train,
        "validation only": task.validation,
        "oracle": Labelled(task.train.inputs[right], task.train.labels[right]),
    }
    y0 = start(task)[1]
    return {name: float(accuracy(train(rows, y0), task.test)) for name, rows in of.items()}
