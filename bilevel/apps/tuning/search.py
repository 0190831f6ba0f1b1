"""From rows to penalties: folds, the best common penalty, then one penalty for each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from bilevel import lower, methods, trees
from bilevel.apps.tuning.two_levels import Sharing, problem
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.losses import RowLoss, Rows, zero_model
from bilevel.methods import AbstractMethod
from bilevel.problem import Batch, Problem
from bilevel.selection import solve

GRID = np.linspace(-10.0, 3.0, 27)  # log penalties on standardised features
NEWTON = lower.NewtonCG(tol=1e-8)


class Folds(NamedTuple):
    """How much each row counts in each fold, with sum one."""

    validation: Float[np.ndarray, "folds n"]
    train: Float[np.ndarray, "folds n"]


class Tuned(NamedTuple):
    """Penalties, and what the folds say of them."""

    penalties: PyTree  # exp x: {"l2": ...}, of the shape of the sharing
    common: float  # the best penalty that all coefficients share
    curve: Float[np.ndarray, " grid"]  # validation loss of each common penalty exp(GRID)
    validation: float  # loss of the penalties on the rows held out of each fold
    folds: Folds
    result: Result

    def __repr__(self) -> str:
        shown = ", ".join(f"{kind}={np.ravel(p)}" for kind, p in self.penalties.items())
        return (
            f"Tuned({shown}, common={self.common:.4g}, validation={self.validation:.6g}; curve, "
            f"folds and {self.result!r})"
        )


def tune(
    rows: Rows,
    loss: RowLoss,
    sharing: Sharing,
    *,
    elastic: bool = False,
    folds: int = 5,
    spread: float = 1.0,
    method: AbstractMethod | None = None,
    steps: int = 50,
    seed: int = 0,
    progress: bool | None = False,
) -> Tuned:
    """Choose penalties by the loss on the rows held out of each fold.

    First the best common penalty on a grid; from there one each, by descent along the exact
    hypergradient. The log penalties are shrunk towards their mean as if drawn around it with
    standard deviation `spread`: without, many penalties fit the held-out rows by chance.

    Args:
        rows: features, best standardised, and the target.
        loss: of `bilevel.losses`, or `(scores (n, outputs), target) -> (n,)` of your own, convex
            in the scores.
        elastic: a penalty on `|w|` beside that on `w²`.
        folds: 1 holds out one third of the rows once.
        method: MAID when absent.
        progress: show a bar of the descent; `None`: where standard error is a terminal.

    Raises:
        ValueError: fewer rows than folds, or a spread that is not positive.
    """
    if not spread > 0:
        raise ValueError(f"spread is {spread}; a positive number is needed.")
    n, d = rows.features.shape
    parts = make_folds(rows.target, folds, seed)
    p = problem(loss, rows, sharing, folds, shrinkage=1 / (n * spread**2))
    plain = problem(loss, rows, sharing, folds)
    data = Batch(jnp.asarray(parts.validation), jnp.asarray(parts.train))
    y0 = _models(folds, d, len(sharing.outputs))
    kinds = ("l2", "l1") if elastic else ("l2",)
    starts = {kind: jnp.broadcast_to(GRID[:, None, None], (len(GRID), *sharing.shape))
              for kind in kinds}  # fmt: skip
    curve = np.asarray(validation_losses(plain, starts, y0, data))
    best = int(np.nanargmin(curve))
    x0 = trees.map(lambda grid: grid[best], starts)
    result = solve(
        p,
        methods.MAID() if method is None else method,
        x0,
        y0,
        data=Data(*data[:2]),
        steps=steps,
        log_every=max(1, steps // 20),
        progress=progress,
        certify=False,
    )
    one = trees.map(lambda leaf: leaf[None], result.x)
    return Tuned(
        penalties=trees.map(jnp.exp, result.x),
        common=float(np.exp(GRID[best])),
        curve=curve,
        validation=float(validation_losses(plain, one, y0, data)[0]),
        folds=parts,
        result=result,
    )


def make_folds(target: Shaped[np.ndarray, " n"], folds: int, seed: int = 0) -> Folds:
    """Rows held out, the same share of every class in each fold.

    Raises:
        ValueError: fewer rows than folds need.
    """
    n, parts = len(target), max(folds, 3)
    if n < max(parts, 2 * folds):
        raise ValueError(
            f"{n} rows to train on are too few for {folds} folds; {max(parts, 2 * folds)} are "
            "needed. Use fewer folds or more rows."
        )
    order = np.random.default_rng(seed).permutation(n)
    if np.issubdtype(target.dtype, np.integer):
        order = order[np.argsort(target[order], kind="stable")]
    part = np.empty(n, int)
    part[order] = np.arange(n) % parts
    held_out = (part == np.arange(folds)[:, None]).astype(float)
    return Folds(*(rows / rows.sum(1, keepdims=True) for rows in (held_out, 1 - held_out)))


def fit(rows: Rows, loss: RowLoss, sharing: Sharing, penalties: PyTree) -> PyTree:
    """The linear model that all rows and these penalties give."""
    n, d = rows.features.shape
    y0 = _models(1, d, len(sharing.outputs))
    x = trees.map(jnp.log, penalties)
    y = _solve(problem(loss, rows, sharing, 1), x, y0, jnp.full((1, n), 1 / n))
    return trees.map(lambda leaf: leaf[0], y)


@jax.jit
def _solve(p: Problem, x: PyTree, y0: PyTree, batch: Array) -> PyTree:
    return NEWTON.solve(p, x, y0, batch).y


@jax.jit
def validation_losses(p: Problem, xs: PyTree, y0: PyTree, data: Batch) -> Float[Array, " many"]:
    """The upper loss at each of many x, with the models fitted to each; one x at a time."""
    return jax.lax.map(lambda x: p.upper(x, NEWTON.solve(p, x, y0, data.lower).y, data.upper), xs)


def _models(folds: int, d: int, outputs: int) -> PyTree:
    return trees.map(lambda leaf: jnp.stack([leaf] * folds), zero_model(d, outputs))
