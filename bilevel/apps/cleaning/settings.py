"""Settings that work, for a linear classifier and for networks, and a run with them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import linear as solvers
from bilevel import methods
from bilevel.apps.cleaning.digits import Task
from bilevel.apps.cleaning.judge import accuracy
from bilevel.apps.cleaning.losses import cross_entropy, problem, self_paced, self_paced_data
from bilevel.apps.cleaning.models import Model, make_linear
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.driver import train as descend
from bilevel.methods import AbstractMethod
from bilevel.problem import Problem
from bilevel.selection import solve
from bilevel.updates import FromOptax

WARM_STEPS, WARM_RATE = 100, 1e-2  # Adam on all samples at weight one half


def settings(lipschitz: float = 1.0) -> dict[str, AbstractMethod]:
    """Each method with steps that suit a linear classifier, on all samples at every step.

    Args:
        lipschitz: largest curvature of the lower loss; 1 suits inputs in [0, 1].
    """
    x_update, step = FromOptax(optax.adam, 0.05), 1 / lipschitz
    return {
        "SOBA": methods.SOBA(x_update, y_update=step, v_update=step),
        "TTSA": methods.TTSA(
            x_update, y_update=step, linear=solvers.RandomizedNeumann(terms=10, step_size=step)
        ),
        "StocBiO": methods.StocBiO(
            x_update,
            y_update=step,
            linear=solvers.Neumann(steps=10, step_size=step),
            lower_steps=5,
        ),
        "F2SA": methods.F2SA(x_update, y_update=step, z_update=step, penalty=100.0, lower_steps=5),
    }


def network_settings(rate: float = 1e-3) -> AbstractMethod:
    """F2SA for networks, whose Hessian may be indefinite: gradients alone, Adam at every level."""
    x_update, y_update = FromOptax(optax.adam, 0.05), FromOptax(optax.adam, rate)
    return methods.F2SA(x_update, y_update, y_update, penalty=10.0, lower_steps=1)


def curvature(inputs: Float[Array, "n d"] | Float[np.ndarray, "n d"]) -> float:
    """A bound on the curvature of the mean cross-entropy of a linear classifier with a bias."""
    rows = np.concatenate([np.asarray(inputs, float), np.ones((len(inputs), 1))], axis=1)
    return float(np.linalg.norm(rows, 2) ** 2 / len(rows) / 2)


def equal_cost(steps: int, of: str = "SOBA") -> dict[str, int]:
    """Steps for each method of `settings` that cost as many gradients as `steps` of one of them."""
    prices = {name: m.price(problem()).gradients() for name, m in settings().items()}
    return {name: max(1, round(steps * prices[of] / price)) for name, price in prices.items()}


def begin(
    losses: Problem, model: Model, data: Data, n: int, key: jax.Array
) -> tuple[Float[Array, " n"], PyTree]:
    """Every weight one half, and the classifier trained a little on all samples.

    It has learned what most labels agree on, and not yet the wrong ones by heart.
    """
    x0, update = jnp.zeros(n), FromOptax(optax.adam, WARM_RATE)
    y0 = descend(losses, x0, model.params, data=data, update=update, steps=WARM_STEPS, key=key)
    return x0, y0


def clean(
    task: Task,
    method: AbstractMethod,
    *,
    steps: int,
    model: Model | None = None,
    batch_size: int | None = None,
    weight: ScalarLike = 2.0,
    decay: ScalarLike = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Result:
    """Learn a weight for each training sample, watching validation loss and test accuracy.

    Args:
        model: the classifier; linear when absent.
        batch_size: training samples a step; all when absent.
        weight: of the self-paced term of the upper loss; 0 leaves the paper's.
        decay: of the classifier.
        options: handed to `bl.solve`.

    Returns:
        `Result`; `weights(result.x)` are the weights, `result.y` is the classifier.
    """
    key = jax.random.key(seed)
    classes = int(task.validation.labels.max()) + 1
    model = make_linear(key, task.train.inputs, classes) if model is None else model
    losses = self_paced(model.scores, weight=weight, decay=decay)
    data = self_paced_data(task, batch_size)
    x0, y0 = begin(losses, model, data, len(task.train.labels), key)
    return solve(
        losses,
        method,
        x0,
        y0,
        data=data,
        steps=steps,
        key=key,
        log_every=max(1, steps // 50),
        metrics=_metrics(task, model),
        progress=progress,
        **options,
    )


def _metrics(task: Task, model: Model) -> Mapping[str, Callable]:
    found = {"validation loss": Partial(_validation_loss, Partial(model.scores), task.validation)}
    if len(task.test.labels):
        found["test accuracy"] = Partial(_test_accuracy, Partial(model.scores), task.test)
    return dict(reversed(found.items()))


def _test_accuracy(scores, test, x, y):
    return accuracy(y, test, scores)


def _validation_loss(scores, validation, x, y):
    return cross_entropy(scores, y, validation).mean()
