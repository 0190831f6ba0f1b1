"""Pruning by BiP, and the two ways by magnitude that it is compared with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from bilevel import methods
from bilevel.apps.pruning.losses import Loss, masked, problem, weights
from bilevel.apps.pruning.masks import AbstractMasking, Unstructured
from bilevel.data import Data
from bilevel.driver import Result, train
from bilevel.methods import AbstractMethod
from bilevel.schedules import Cosine
from bilevel.selection import solve
from bilevel.updates import Momentum


class Pruned(NamedTuple):
    """A pruned network, and what it took."""

    params: PyTree  # with zeros where weights are pruned
    masks: dict[str, Array]
    steps: int  # steps of training
    result: Result | None  # of BiP: history and status


def method(steps: int, *, step: float = 0.1, mask_step: float = 0.1) -> AbstractMethod:
    """The authors' loop: a lower step on one batch, a step of the scores on another."""
    return methods.TTSA(Momentum(mask_step, 0.9), Momentum(Cosine(step, steps), 0.9))


def prune(
    loss: Loss,
    params: PyTree,
    data: Any,
    masking: AbstractMasking,
    *,
    steps: int = 2000,
    batch: int | None = 128,
    step: float = 0.1,
    mask_step: float = 0.1,
    keep: tuple[str, ...] = (),
    seed: int = 0,
    **problem_or_solve: Any,
) -> Pruned:
    """Learn a mask and the weights under it, from a trained network.

    Args:
        loss: `ℓ(params, batch) -> scalar`.
        params: any pytree of floating arrays.
        data: a pytree of arrays, a row a sample; both levels draw batches from it, each its own.
        masking: what to keep, such as `Unstructured(0.01)`, `NofM(2, 4)` or `Slices(0.5)`.
        batch: rows of a batch; all when absent.
        step, mask_step: step sizes of the weights, decayed along a cosine, and of the scores.
        keep: places of arrays that stay as they are; `weights(params)` tells the places.
        problem_or_solve: decay, gamma and exact of `problem`; the rest is for `bl.solve`.

    Returns:
        `Pruned`; no training afterwards is needed. The history has `changed`, the share of
        kept weights that magnitude alone would not keep; it levels off when the mask has settled.
    """
    own = {n: problem_or_solve.pop(n) for n in ("decay", "gamma", "exact") if n in problem_or_solve}
    scores = weights(params, keep)
    changed = Partial(_changed, masking, masking(scores))
    result = solve(
        problem(loss, masking, **own),
        method(steps, step=step, mask_step=mask_step),
        scores,
        params,
        data=_data(data, batch),
        steps=steps,
        key=jax.random.key(seed),
        metrics={"changed": changed} | dict(problem_or_solve.pop("metrics", None) or {}),
        **{"certify": False, "log_every": max(1, steps // 20), **problem_or_solve},
    )
    masks = masking(result.x)
    return Pruned(masked(masks, result.y), masks, int(result.state.k), result)


def one_shot(
    loss: Loss,
    params: PyTree,
    data: Any,
    masking: AbstractMasking,
    *,
    steps: int = 2000,
    batch: int | None = 128,
    step: float = 0.1,
    decay: float = 1e-4,
    keep: tuple[str, ...] = (),
    seed: int = 0,
) -> Pruned:
    """Keep the largest weights at once, then train them: OMP, the usual baseline."""
    scores = weights(params, keep)
    y = train(
        problem(loss, masking, decay=decay),
        scores,
        params,
        data=_data(data, batch),
        update=Momentum(Cosine(step, steps), 0.9),
        steps=steps,
        key=jax.random.key(seed),
    )
    return Pruned(masked(masking(scores), y), masking(scores), steps, None)


def iterative(
    loss: Loss, params: PyTree, data: Any, density: float, *, rate: float = 0.2, **options: Any
) -> Pruned:
    """Prune a share `rate` of the weights left, train, and again until `density`: IMP.

    Args:
        options: those of `one_shot`; `steps` is that of each round.
    """
    left, steps = 1.0, 0
    while True:
        left = max(left * (1 - rate), density)
        params, masks, once, _ = one_shot(loss, params, data, Unstructured(left), **options)
        steps += once
        if left <= density:
            return Pruned(params, masks, steps, None)


def _changed(masking, start, x, y):
    """The share of the kept weights that the mask of the start did not keep."""
    masks = masking(x)
    new = sum(jnp.sum(masks[name] * (1 - start[name])) for name in masks)
    return new / sum(jnp.sum(m) for m in masks.values())


def _data(data: Any, batch: int | None) -> Data:
    rows = len(jax.tree.leaves(data)[0])
    return Data(upper=data, lower=data, batch_size=None if batch is None else min(batch, rows))
