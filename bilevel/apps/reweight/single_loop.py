"""ScaleBiO: F2SA with a constant penalty and AdamW on all three variables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree, ScalarLike

from bilevel import lower, methods, trees
from bilevel.apps.reweight.two_levels import Sources, everything, problem, stratified
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.losses import RowLoss, Rows, zero_model
from bilevel.problem import Batch
from bilevel.selection import solve
from bilevel.updates import FromOptax


class Reweighted(NamedTuple):
    """A weight for each source, and the run that found them."""

    weights: Float[np.ndarray, " sources"]
    result: Result


def method(
    penalty: ScalarLike = 10.0, step_size: ScalarLike = 1e-2, decay: ScalarLike = 5e-4
) -> methods.F2SA:
    """F2SA as ScaleBiO sets it: AdamW, without weight decay on the logits, one step each."""
    y_update = FromOptax(optax.adamw, step_size, weight_decay=decay)
    return methods.F2SA(
        FromOptax(optax.adam, step_size), y_update, y_update, penalty, lower_steps=1
    )


def scalebio(
    sources: Sources,
    validation: Rows,
    loss: RowLoss,
    *,
    outputs: int = 1,
    by: methods.F2SA | None = None,
    batch_size: int = 64,
    steps: int = 3000,
    seed: int = 0,
    **options: Any,
) -> Reweighted:
    """Learn a weight for each source.

    Args:
        validation: rows that can be trusted.
        outputs: of the linear model.
        by: `method(...)`.
        batch_size: rows of a step at each level, the same number from every source.
        options: handed to `bl.solve`.
    """
    rows = max(1, batch_size // sources.number)
    some = min(batch_size, len(validation.target))
    result = solve(
        problem(loss),
        method() if by is None else by,
        jnp.zeros(sources.number),
        zero_model(sources.rows.features.shape[1], outputs),
        data=Data(
            Rows(*map(jnp.asarray, validation)),
            stratified(sources, rows),
            batch_size=Batch(some, None),
        ),
        steps=steps,
        key=jax.random.key(seed),
        **({"log_every": max(1, steps // 50), "progress": False, "certify": False} | options),
    )
    return Reweighted(np.asarray(jax.nn.softmax(result.x)), result)


def train(sources: Sources, weights: Any, loss: RowLoss, *, outputs: int = 1) -> PyTree:
    """The model that all rows give under fixed weights of the sources."""
    y0 = zero_model(sources.rows.features.shape[1], outputs)
    logits = jnp.log(jnp.maximum(jnp.asarray(weights, float), 1e-300))
    return _fit(problem(loss), logits, y0, everything(sources))


@jax.jit
def _fit(p, x: PyTree, y0: PyTree, batch: Any) -> PyTree:
    return lower.NewtonCG(tol=1e-8).solve(p, x, trees.copy(y0), batch).y
