"""Settings that work for a linear classifier, and a run with them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.tree_util import Partial

from bilevel import linear as solvers
from bilevel import methods
from bilevel.apps.cleaning.digits import Task
from bilevel.apps.cleaning.judge import accuracy
from bilevel.apps.cleaning.losses import cross_entropy, data, linear, problem, start
from bilevel.driver import Result
from bilevel.methods import AbstractMethod
from bilevel.selection import solve
from bilevel.updates import FromOptax


def settings() -> dict[str, AbstractMethod]:
    """Each method with steps that suit a linear classifier on inputs in [0, 1], on all samples."""
    x_update = FromOptax(optax.adam, 0.05)
    return {
        "SOBA": methods.SOBA(x_update, y_update=1.0, v_update=1.0),
        "TTSA": methods.TTSA(
            x_update, y_update=1.0, linear=solvers.RandomizedNeumann(terms=10, step_size=1.0)
        ),
        "StocBiO": methods.StocBiO(
            x_update,
            y_update=1.0,
            linear=solvers.Neumann(steps=10, step_size=1.0),
            lower_steps=5,
        ),
        "F2SA": methods.F2SA(x_update, y_update=1.0, z_update=1.0, penalty=100.0, lower_steps=5),
    }


def equal_cost(steps: int, of: str = "SOBA") -> dict[str, int]:
    """Steps for each method of `settings` that cost as many gradients as `steps` of one of them."""
    prices = {name: m.price(problem()).gradients() for name, m in settings().items()}
    return {name: max(1, round(steps * prices[of] / price)) for name, price in prices.items()}


def clean(
    task: Task,
    method: AbstractMethod,
    *,
    steps: int,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Result:
    """Clean a task with a linear classifier, watching test accuracy and validation loss.

    Args:
        options: handed to `bl.solve`.

    Returns:
        `Result`; `weights(result.x)` are the weights, `result.y` is the classifier.
    """
    x0, y0 = start(task)
    return solve(
        problem(),
        method,
        x0,
        y0,
        data=data(task),
        steps=steps,
        key=jax.random.key(seed),
        log_every=max(1, steps // 50),
        metrics=_metrics(task),
        progress=progress,
        **options,
    )


def _metrics(task: Task) -> Mapping[str, Callable]:
    return {
        "test accuracy": Partial(_test_accuracy, task.test),
        "validation loss": Partial(_validation_loss, task.validation),
    }


def _test_accuracy(test, x, y):
    return accuracy(y, test)


def _validation_loss(validation, x, y):
    return cross_entropy(linear, y, validation).mean()
