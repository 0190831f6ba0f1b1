"""A genetic algorithm over designs, alone or with a surrogate that screens the children.

The usual baseline for network design; the hybrid follows the frameworks that learn the planner's
loss from solved designs and spend equilibria on the promising ones only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

POPULATION, SCREENED = 20, 8  # designs held; children judged by the surrogate for each solved


class Found(NamedTuple):
    x: Float[np.ndarray, " k"]
    value: float
    history: Float[np.ndarray, " evaluations"]  # the best value so far


def genetic(
    loss: Callable[[np.ndarray], float],
    k: int,
    *,
    evaluations: int,
    whole: bool = False,
    hybrid: bool = True,
    seed: int = 0,
) -> Found:
    """Minimise a loss over `[0, 1]^k`, or `{0, 1}^k` where `whole`.

    Args:
        evaluations: how often the loss is evaluated.
        hybrid: of several children, the one that a quadratic surrogate likes best is evaluated.
    """
    rng = np.random.default_rng(seed)
    first = rng.uniform(size=(min(POPULATION, evaluations), k))
    first[0] = 0  # nothing is changed
    designs = list(np.round(first) if whole else first)
    values = [loss(x) for x in designs]
    while len(values) < evaluations:
        order = np.argsort(values)[:POPULATION]
        parents = [designs[i] for i in order]
        children = [_child(parents, rng, whole) for _ in range(SCREENED if hybrid else 1)]
        fresh = [c for c in children if not any(np.array_equal(c, x) for x in designs)]
        if whole and len(designs) >= 2**k:
            break
        children = fresh or [_mutated(children[0], rng, whole, rate=0.5)]
        child = children[int(np.argmin(_surrogate(designs, values, children)))]
        designs.append(child)
        values.append(loss(child))
    best = int(np.argmin(values))
    return Found(designs[best], values[best], np.minimum.accumulate(values))


def _child(parents, rng, whole: bool):
    """Two winners of tournaments, crossed and mutated; parents come best first."""
    a, b = (parents[min(rng.integers(len(parents), size=2))] for _ in range(2))
    weight = rng.integers(0, 2, len(a)) if whole else rng.uniform(-0.25, 1.25, len(a))
    return _mutated(np.clip(weight * a + (1 - weight) * b, 0, 1), rng, whole, rate=1 / len(a))


def _mutated(x, rng, whole: bool, rate: float):
    moved = rng.uniform(size=len(x)) < rate
    other = 1 - x if whole else np.clip(x + 0.2 * rng.normal(size=len(x)), 0, 1)
    return np.where(moved, other, x)


def _surrogate(designs, values, children) -> Float[np.ndarray, " children"]:
    """Predictions of ridge regression on x, x² and products, from all designs solved."""

    def features(x):
        x = np.atleast_2d(x)
        i, j = np.triu_indices(x.shape[1])
        return np.hstack([np.ones((len(x), 1)), x, x[:, i] * x[:, j]])

    known, targets = features(np.array(designs)), np.array(values)
    mean, scale = targets.mean(), targets.std() + 1e-12
    kernel = known @ known.T + 1e-3 * np.eye(len(known))
    weights = known.T @ np.linalg.solve(kernel, (targets - mean) / scale)
    return features(np.array(children)) @ weights
