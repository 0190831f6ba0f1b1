"""From a weighted table and folds to penalties and a model, in one compiled program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bilevel import lower, methods, trees
from bilevel.apps.tuning.search import GRID, Folds, validation_losses
from bilevel.apps.tuning.two_levels import Sharing, problem
from bilevel.global_search import double_precision
from bilevel.losses import RowLoss, Rows
from bilevel.problem import Batch
from bilevel.sklearn.padded import COLUMNS, ROWS, pad, power_of_two

EXACTLY = lower.NewtonCG(tol=1e-12)  # the last fit


class Task(NamedTuple):
    """What is fitted: standardised rows, how much each counts, and which share penalties."""

    rows: Rows
    weights: Float[np.ndarray, " n"]
    folds: Folds
    groups: Int[np.ndarray, " d"]  # the number of the penalty of each feature
    outputs: int


class Fitted(NamedTuple):
    """Penalties, the model that they give on all rows, and how the descent went."""

    penalties: dict[str, Float[np.ndarray, " groups"]]
    weights: Float[np.ndarray, "d outputs"]
    bias: Float[np.ndarray, " outputs"]
    common: float  # the best penalty that all features share
    curve: Float[np.ndarray, " grid"]  # validation loss of each common penalty exp(GRID)
    validation: float  # of the penalties
    steps: int


def fit(task: Task, loss: RowLoss, *, elastic: bool, spread: float, steps: int) -> Fitted:
    """Choose the penalties by `MAID` from the best common one, then fit the model to all rows.

    Rows and columns of zeros make the sizes powers of two; they count for nothing in either level.
    """
    (n, d), k = task.rows.features.shape, int(task.groups.max()) + 1
    N, D = power_of_two(n, ROWS), power_of_two(d + 1, COLUMNS)  # at least one column of zeros
    rows = Rows(pad(task.rows.features, N, D), pad(task.rows.target, N))
    features = np.concatenate([task.groups, np.full(D - d, D - 1)])  # D penalties, k of them real
    sharing = Sharing(features, np.zeros(task.outputs, int))
    counted = pad(np.ones((k, 1)), D, 1)
    whole = task.weights[None] / task.weights.sum()
    folds = Batch(*(pad(part, len(part), N) for part in task.folds))
    starts = {kind: np.broadcast_to(GRID[:, None, None], (len(GRID), D, 1))
              for kind in (("l2", "l1") if elastic else ("l2",))}  # fmt: skip
    y0 = {"weights": np.zeros((D, task.outputs)), "bias": np.zeros(task.outputs)}
    shrinkage = np.float64(1 / (task.weights.sum() * spread**2))
    with double_precision():
        found = _fit(
            loss, rows, sharing, counted, shrinkage, starts, y0, folds, pad(whole, 1, N),
            np.int32(steps),
        )  # fmt: skip
        x, y, curve, best, validation, taken = jax.device_get(found)
    return Fitted(
        {kind: np.exp(log[:k, 0]) for kind, log in x.items()},
        y["weights"][0, :d],
        y["bias"][0],
        float(np.exp(GRID[best])),
        curve,
        float(validation),
        int(taken),
    )


@functools.partial(jax.jit, static_argnames="loss")
def _fit(
    loss: RowLoss, rows: Rows, sharing: Sharing, counted: Array, shrinkage: Array, starts: PyTree,
    y0: PyTree, folds: Batch, whole: Array, steps: Array,
):  # fmt: skip
    count = len(folds.upper)
    chosen = problem(loss, rows, sharing, count, shrinkage=shrinkage, counted=counted)
    plain = problem(loss, rows, sharing, count, counted=counted)
    last = problem(loss, rows, sharing, 1, counted=counted)
    models = trees.map(lambda leaf: jnp.stack([leaf] * count), y0)
    curve = validation_losses(plain, starts, models, folds)
    best = jnp.nanargmin(curve)
    method = methods.MAID()
    state = method.init(chosen, trees.map(lambda grid: grid[best], starts), models)
    state = jax.lax.while_loop(
        lambda state: (state.k < steps) & ~state.exhausted,
        lambda state: method.step(chosen, state, folds)[0],
        state,
    )
    x = state.x
    y = EXACTLY.solve(last, x, trees.map(lambda leaf: leaf[None], y0), whole).y
    reached = validation_losses(plain, trees.map(lambda leaf: leaf[None], x), models, folds)
    return x, y, curve, best, reached[0], state.k
