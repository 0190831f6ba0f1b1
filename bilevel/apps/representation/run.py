"""Learning features or a start, and how good they are for tasks that were not seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.apps.representation.problem import (
    Loss,
    Network,
    cross_entropy,
    problem,
    starts,
    task_scores,
)
from bilevel.apps.representation.settings import settings
from bilevel.apps.representation.tasks import Rows, Tasks
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.lower import Gradient, NewtonCG
from bilevel.selection import solve

INTERVAL = 1.96  # standard errors: 95 %


class Judged(NamedTuple):
    """Mean over tasks, and half of its 95 % interval."""

    mean: float
    half: float
    each: Float[np.ndarray, " m"]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"


def curvature(network: Network, x: PyTree, support: Rows, loss: Loss) -> Scalar:
    """A bound on the curvature of a lower loss in its head at these features, without decay."""

    def largest(inputs):
        h = network.features(x, inputs)
        return jnp.linalg.norm(h, 2) ** 2 / len(h)

    bound = jax.vmap(largest)(support.inputs).max()
    return bound / 2 if loss is cross_entropy else bound


def learn(
    tasks: Tasks,
    network: Network,
    method: str = "BSVRBv2",
    *,
    steps: int,
    loss: Loss = cross_entropy,
    decay: float = 0.1,
    drawn: int = 5,
    rate: float = 2e-3,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Learn features that suit all tasks, each with a head of its own; or, by MAML, a start.

    Args:
        method: a name of `METHODS`.
        decay: of the heads; of the distance from the start with iMAML.
        drawn: tasks of a step, with the methods that take some.
        rate: of Adam on the features.
        options: handed to `bl.solve`.

    Returns:
        `Result`; `result.x` are the features (with MAML and iMAML features and head) and
        `result.y` the heads of the tasks.
    """
    m, key = len(tasks), jax.random.key(seed)
    x0, _ = starts(network, m, key)
    lipschitz = 1.5 * float(curvature(network, x0, tasks.support, loss)) + decay
    setting = settings(method, m, lipschitz=lipschitz, drawn=drawn, rate=rate)
    x0, y0 = starts(network, m, key, adapt=setting.adapt)
    losses = problem(network, m, loss, decay=decay, adapt=setting.adapt)
    data = Data(tasks.query, tasks.support, blocks=setting.drawn)
    defaults = {"certify": False, "progress": False, "log_every": max(1, steps // 20)}
    given: dict[str, Any] = defaults | options
    return solve(losses, setting.method, x0, y0, data=data, steps=steps, key=key, **given)


def adapt(
    x: PyTree,
    network: Network,
    support: Rows,
    *,
    loss: Loss = cross_entropy,
    decay: float = 0.1,
    steps: int | None = None,
    rate: float = 0.1,
) -> PyTree:
    """Heads for other tasks: the lower problem solved; with `steps`, gradient steps from a start.

    Args:
        x: features; with `steps`, features and head of MAML or iMAML.
    """
    m = len(support.targets)
    if steps is None:  # features do not move, so they are computed once
        inputs = jax.jit(jax.vmap(network.features, (None, 0)))(x, support.inputs)
        network, support = network._replace(features=_as_they_are), Rows(inputs, support.targets)
    how = "head" if steps is None else "all"
    _, y0 = starts(network, m, jax.random.key(0), adapt=how)
    losses = problem(network, m, loss, decay=decay, adapt=how)
    solver = NewtonCG(tol=1e-5, max_steps=200) if steps is None else Gradient(rate, steps)
    return jax.jit(lambda *args: solver.solve(*args))(losses, x, y0, support).y


def _as_they_are(x: PyTree, inputs: Array) -> Array:
    return inputs


def judge(
    x: PyTree,
    network: Network,
    tasks: Tasks,
    *,
    loss: Loss = cross_entropy,
    decay: float = 0.1,
    steps: int | None = None,
) -> Judged:
    """Accuracy on the query samples of tasks, their heads fitted on the support; else the loss.

    The interval is that of the mean over the tasks.
    """
    y = adapt(x, network, tasks.support, loss=loss, decay=decay, steps=steps)

    def of_task(x, y, rows: Rows):
        scores = task_scores(network.features, steps is not None, x, y, rows.inputs)
        if loss is cross_entropy:
            return jnp.mean(scores.argmax(1) == rows.targets)
        return loss(scores, rows.targets).mean()

    each = np.asarray(jax.jit(jax.vmap(of_task, (None, 0, 0)))(x, y, tasks.query))
    half = INTERVAL * each.std(ddof=1) / np.sqrt(len(each))
    return Judged(float(each.mean()), float(half), each)
