"""Random graphs with data, and how far two graphs are apart."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Sampled(NamedTuple):
    """A planted graph and data from it."""

    data: Float[np.ndarray, "n d"]
    W: Float[np.ndarray, "d d"]  # (i, j) is the weight of i → j
    order: Int[np.ndarray, " d"]


def sample(d: int, n: int, *, edges: float, seed: int = 0) -> Sampled:
    """A linear model with standard normal noise on an Erdős–Rényi graph of `edges · d` edges.

    Weights are uniform on ±[0.5, 2], as in the papers.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(d)
    there = np.triu(draw.uniform(size=(d, d)) < min(1, 2 * edges / (d - 1)), 1)
    sizes = draw.uniform(0.5, 2, (d, d)) * draw.choice([-1, 1], (d, d))
    W = np.zeros((d, d))
    W[np.ix_(order, order)] = there * sizes
    noise = draw.normal(size=(n, d))
    return Sampled(noise @ np.linalg.inv(np.eye(d) - W), W, order)


def cut(W: Float[np.ndarray, "d d"], threshold: float = 0.3) -> Float[np.ndarray, "d d"]:
    """Without the weights that are smaller than the threshold."""
    return np.where(np.abs(W) < threshold, 0.0, W)


def distance(first: Float[np.ndarray, "d d"], second: Float[np.ndarray, "d d"]) -> int:
    """Structural Hamming distance: edges to add, remove or turn around (which counts once)."""
    a, b = first != 0, second != 0
    differs: Bool[np.ndarray, "d d"] = a != b
    return int(np.triu(differs | differs.T).sum())


def is_acyclic(W: Float[np.ndarray, "d d"]) -> bool:
    """Whether no path of edges leads back to where it began."""
    left = W != 0
    while len(left):
        sinks = ~left.any(1)
        if not sinks.any():
            return False
        left = left[np.ix_(~sinks, ~sinks)]
    return True
