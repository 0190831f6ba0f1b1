"""The lower problem: regressions of each column on those before it, all from one factorisation."""

import itertools

import numpy as np
from jaxtyping import Float, Int

Covariance = Float[np.ndarray, "d d"]
Order = Int[np.ndarray, " d"]  # columns, those first that nothing points to


def covariance(data: Float[np.ndarray, "n d"]) -> Covariance:
    """`XᵀX/n` of the centred columns."""
    centred = data - data.mean(0)
    return centred.T @ centred / len(data)


def score(C: Covariance, orders: Int[np.ndarray, "... d"]) -> Float[np.ndarray, "..."]:
    """`½ Σ_j` of the variance of each column that is left after those before it explain it.

    With `C = L Lᵀ` in the order, that variance is `L_jj²`. Several orders at once are faster.
    """
    L = np.linalg.cholesky(C[orders[..., :, None], orders[..., None, :]])
    return (np.diagonal(L, axis1=-2, axis2=-1) ** 2).sum(-1) / 2


def weights(C: Covariance, order: Order) -> Float[np.ndarray, "d d"]:
    """`W*(o)`: entry (i, j) is the coefficient of column i in the regression for column j."""
    L = np.linalg.cholesky(C[np.ix_(order, order)])
    unit = L / np.diagonal(L)  # X = noise · unitᵀ, so W = I − unit⁻ᵀ
    W = np.zeros_like(C)
    W[np.ix_(order, order)] = np.triu(np.eye(len(C)) - np.linalg.inv(unit).T, 1)
    return W


def brute_force(C: Covariance) -> Order:
    """The best of all orders; for up to 8 columns."""
    orders = np.array(list(itertools.permutations(range(len(C)))))
    return orders[score(C, orders).argmin()]
