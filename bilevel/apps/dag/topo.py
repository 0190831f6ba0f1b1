"""The upper problem: swaps of two columns in the order, as long as one lowers the score."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.apps.dag.score import Covariance, Order, score, weights


class Found(NamedTuple):
    """Where a search ended."""

    order: Order
    W: Float[np.ndarray, "d d"]  # all regressions on earlier columns, small coefficients included
    score: float
    rounds: int  # in which swaps were made


def topo(
    C: Covariance,
    start: Order | None = None,
    *,
    small: int = 100,
    large: int = 400,
    patience: int = 1,
) -> Found:
    """Make the swaps that lower the score, best first, until none does.

    Candidates are the pairs (i, j), j before i, whose edge i → j would add the least to the
    acyclicity function `h(W) = −log det(I − |W|)`. Swaps of places that do not overlap change
    different columns only, so a round makes all of those at once.

    Args:
        C: covariance of the columns, of full rank.
        start: an order to start from; by variance, smallest first, if `None`.
        small, large: how many candidates are tried, and how many once none of these helps.
        patience: how often the larger number may be tried.
    """
    order = np.diagonal(C).argsort(kind="stable") if start is None else np.array(start)
    value, rounds, size = float(score(C, order)), 0, small
    while True:
        pairs = _candidates(weights(C, order), order, size)
        better = _swaps(C, order, pairs, value)
        if better:
            for i, j in better:
                order[[i, j]] = order[[j, i]]
            value, rounds, size = float(score(C, order)), rounds + 1, small
        elif size < large and patience > 0:
            size, patience = large, patience - 1
        else:
            return Found(order, weights(C, order), value, rounds)


def restarts(C: Covariance, count: int, seed: int = 0) -> Found:
    """The best search of several: from the order by variance, and from random orders."""
    draw = np.random.default_rng(seed)
    starts = [None, *(draw.permutation(len(C)) for _ in range(count - 1))]
    return min((topo(C, start) for start in starts), key=lambda found: found.score)


def _candidates(W: np.ndarray, order: Order, size: int) -> Int[np.ndarray, "k 2"]:
    """Pairs of places, first below second, whose swap allows the cheapest edges."""
    W = np.abs(W[np.ix_(order, order)])
    slope = np.linalg.inv(np.eye(len(W)) - W).T  # ∂h/∂|W|, in places
    second, first = np.tril_indices(len(W), -1)
    cheapest = slope[second, first].argsort(kind="stable")[:size]
    return np.stack([first, second], 1)[cheapest]


def _swaps(C: Covariance, order: Order, pairs: np.ndarray, value: float) -> list[tuple[int, int]]:
    """Those that lower the score, best first, without any that overlap a better one."""
    tried = np.tile(order, (len(pairs), 1))
    rows = np.arange(len(pairs))[:, None]
    tried[rows, pairs] = tried[rows, pairs[:, ::-1]]
    gains = value - score(C, tried)
    chosen: list[tuple[int, int]] = []
    for k in (-gains).argsort(kind="stable"):
        i, j = map(int, pairs[k])
        if gains[k] <= 1e-10 * value:
            break
        if all(j < a or b < i for a, b in chosen):
            chosen.append((i, j))
    return chosen
