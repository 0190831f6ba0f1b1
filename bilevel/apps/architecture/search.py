"""Searching, training what was found again, and searching at random for comparison."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel import methods, trees
from bilevel.apps.architecture.space import Architecture, Cell, Logits
from bilevel.data import Data
from bilevel.driver import Result, train
from bilevel.methods import AbstractMethod
from bilevel.problem import Problem
from bilevel.schedules import Constant
from bilevel.selection import solve
from bilevel.typing import RandomKey
from bilevel.updates import FromOptax, Momentum

Network = Callable[[Callable[[PyTree, Array], Array], PyTree, Any], Scalar]


def squared_error(cell: Callable, y: PyTree, batch: tuple[Array, Array]) -> Scalar:
    """The cell itself as a regression: y is the weights of its operations."""
    inputs, targets = batch
    return jnp.mean((cell(y, inputs) - targets) ** 2)


def problem(cell: Cell, loss: Network = squared_error, *, decay: ScalarLike = 1e-2) -> Problem:
    """Logits of the operations above, weights below.

    Args:
        loss: `loss(cell, y, batch) -> scalar`. It calls `cell(weights, h)` wherever its network
            has the cell, with the weights of that place, such as `cell(y["first"], h)`.
        decay: of all weights. It decides between operations that can do the same: an identity
            needs no weights, a matrix does.
    """
    return Problem(_Loss(cell, loss, 0.0), _Loss(cell, loss, decay))


class _Loss(eqx.Module):
    cell: Cell = eqx.field(static=True)
    loss: Network = eqx.field(static=True)
    decay: ScalarLike

    def __call__(self, x, y, batch):
        value = self.loss(lambda weights, h: self.cell(x, weights, h), y, batch)
        return value + jnp.asarray(self.decay, value.dtype) / 2 * trees.dot(y, y)


class _Fixed(eqx.Module):
    cell: Cell = eqx.field(static=True)
    loss: Network = eqx.field(static=True)
    architecture: tuple[tuple[str, str], ...] = eqx.field(static=True)
    decay: ScalarLike

    def __call__(self, x, y, batch):
        chosen = dict(self.architecture)
        value = self.loss(lambda weights, h: self.cell.fixed(chosen, weights, h), y, batch)
        return value + jnp.asarray(self.decay, value.dtype) / 2 * trees.dot(y, y)


def method(
    *, second_order: bool = True, x_step: float = 0.1, y_step: float = 0.1
) -> AbstractMethod:
    """DARTS: the first order ignores how y answers to x, the second takes one virtual step.

    The second order takes a finite difference in place of a product, as the paper does.
    """
    return methods.DARTS(
        FromOptax(optax.adam, x_step, b1=0.5),
        Momentum(y_step, 0.9),
        radius=0.01 if second_order else None,
        unroll_step=Constant(y_step if second_order else 0.0),
    )


class Found(NamedTuple):
    """An architecture, and what it took."""

    architecture: Architecture
    x: Logits
    result: Result


def search(
    cell: Cell,
    y0: PyTree,
    train_rows: Any,
    valid_rows: Any,
    *,
    loss: Network = squared_error,
    decay: float = 1e-2,
    how: AbstractMethod | None = None,
    steps: int = 500,
    batch: int = 64,
    incoming: int = 2,
    seed: int = 0,
    **options: Any,
) -> Found:
    """Search on two halves of the data: weights on one, logits on the other.

    Args:
        how: `method()` when absent.
        options: handed to `bl.solve`.

    Returns:
        `Found`. Its history has the share of each edge's strongest operation as `EDGE share`.
    """
    metrics = {f"{edge} share": _Share(edge) for edge in cell.edges}
    result = solve(
        problem(cell, loss, decay=decay),
        method() if how is None else how,
        cell.logits(),
        y0,
        data=Data(upper=valid_rows, lower=train_rows, batch_size=batch),
        steps=steps,
        key=jax.random.key(seed),
        **{"certify": False, "metrics": metrics, **options},
    )
    return Found(cell.discretise(result.x, incoming), result.x, result)


class _Share(eqx.Module):
    edge: str = eqx.field(static=True)

    def __call__(self, x, y):
        return jax.nn.softmax(x[self.edge]).max()


def retrain(
    cell: Cell,
    architecture: Architecture,
    y0: PyTree,
    rows: Any,
    *,
    loss: Network = squared_error,
    decay: float = 1e-2,
    y_step: float = 0.1,
    steps: int = 500,
    batch: int = 64,
    key: RandomKey | None = None,
) -> tuple[PyTree, Callable[[Any], float]]:
    """Weights of an architecture trained from y0, and their loss as a function of rows."""
    lower = _Fixed(cell, loss, tuple(architecture.items()), decay)
    own = Problem(lower, lower)
    data, update = Data(lower=rows, batch_size=batch), Momentum(y_step, 0.9)
    y = train(own, jnp.zeros(()), y0, data=data, update=update, steps=steps, key=key)
    bare = _Fixed(cell, loss, lower.architecture, 0.0)
    return y, lambda rows: float(bare(None, y, rows))


def random_search(
    cell: Cell,
    y0: PyTree,
    train_rows: Any,
    valid_rows: Any,
    *,
    trials: int,
    incoming: int = 2,
    seed: int = 0,
    **options: Any,
) -> Architecture:
    """The best of some architectures drawn at random, each trained for as long as any other.

    Args:
        options: those of `retrain`.
    """
    draw = np.random.default_rng(seed)
    best, least = {}, np.inf
    for _ in range(trials):
        logits = {edge: draw.normal(size=len(cell.operations)) for edge in cell.edges}
        drawn = cell.discretise({e: jnp.asarray(v) for e, v in logits.items()}, incoming)
        _, loss_on = retrain(cell, drawn, y0, train_rows, **options)
        if (value := loss_on(valid_rows)) < least:
            best, least = drawn, value
    return best


def equal_trials(cell: Cell, *, second_order: bool = True) -> int:
    """How many architectures can be trained for as many steps at the price of a search.

    A step of the search takes 2 gradients (4 in second order) of every operation of an edge, a
    step of training one of one operation.
    """
    return (4 if second_order else 2) * len(cell.operations)
