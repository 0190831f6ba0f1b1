"""NOTEARS: the same score over all matrices, with acyclicity as a smooth constraint.

Zheng, Aragam, Ravikumar, Xing. "DAGs with NO TEARS". NeurIPS 2018, arXiv:1803.01422.
"""

import numpy as np
from jaxtyping import Float
from scipy.linalg import expm
from scipy.optimize import minimize

from bilevel.apps.dag.score import Covariance


def notears(
    C: Covariance, *, sparsity: float = 0.1, tol: float = 1e-8, most: float = 1e16
) -> Float[np.ndarray, "d d"]:
    """Minimise `½ tr((I − W)ᵀ C (I − W)) + sparsity ‖W‖₁` where `tr e^{W∘W} = d`.

    By an augmented Lagrangian whose steps L-BFGS takes, as in the paper. `most` bounds the penalty.
    W still has small entries: cut them off, for example below 0.3.
    """
    d = len(C)
    free = ~np.eye(d, dtype=bool)
    eye, bounds = np.eye(d), [(0, None)] * (2 * d * (d - 1))

    def matrix(parts: np.ndarray) -> np.ndarray:
        positive, negative = parts.reshape(2, -1)
        W = np.zeros((d, d))
        W[free] = positive - negative
        return W

    def lagrangian(parts: np.ndarray, penalty: float, dual: float):
        W = matrix(parts)
        rest, exponential = C @ (eye - W), expm(W * W)
        cyclic = np.trace(exponential) - d
        value = np.sum((eye - W) * rest) / 2 + sparsity * parts.sum()
        value += penalty / 2 * cyclic**2 + dual * cyclic
        slope = (-rest + (penalty * cyclic + dual) * 2 * W * exponential.T)[free]
        return value, np.concatenate([slope + sparsity, sparsity - slope])

    parts, penalty, dual, before = np.zeros(2 * d * (d - 1)), 1.0, 0.0, np.inf
    while penalty < most:
        parts = minimize(
            lagrangian, parts, (penalty, dual), jac=True, method="L-BFGS-B", bounds=bounds
        ).x
        W = matrix(parts)
        cyclic = np.trace(expm(W * W)) - d
        if cyclic <= tol:
            break
        dual += penalty * cyclic
        if cyclic > before / 4:
            penalty *= 10
        before = cyclic
    return matrix(parts)
