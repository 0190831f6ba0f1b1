"""Extreme eigenvalues of symmetric operators on pytrees, from their products alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import trees
from bilevel.typing import PyTree

DENSE_UP_TO = 200  # entries for which the matrix is formed

Product = Callable[[np.ndarray], np.ndarray]


def on_vectors(operator: Callable[[PyTree], PyTree], like: PyTree) -> Product:
    """The operator on ravelled float64 vectors of the host."""

    def product(vector: np.ndarray) -> np.ndarray:
        return ravel(operator(unravel(vector.reshape(-1), like)))

    return product


def ravel(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def unravel(vector: np.ndarray, like: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    pieces = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [jnp.asarray(p.reshape(q.shape), q.dtype) for p, q in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def extremes(operator: Callable, like: PyTree, key) -> tuple[float, float, bool]:
    """Smallest and largest eigenvalue, and whether the smallest is resolved to one per cent.

    Dense with up to 200 entries, exact up to rounding. Beyond, Lanczos: each to one per cent of
    itself or, when that does not converge, to a thousandth of the norm.
    """
    product, n = on_vectors(operator, like), trees.size(like)
    if n <= DENSE_UP_TO:
        eigenvalues = _dense(product, n)
        return float(eigenvalues[0]), float(eigenvalues[-1]), True
    start = ravel(trees.random_like(key, like))
    image = product(start)
    if not np.isfinite(image).all():
        return np.nan, np.nan, False
    if not image.any():
        return 0.0, 0.0, True
    reach = abs(_lanczos(product, n, start, "LM", 1e-2))
    smallest, resolved = _end(product, n, start, "SA", reach)
    largest, _ = _end(product, n, start, "LA", reach)
    return smallest, largest, resolved


def largest_magnitude(operator: Callable, like: PyTree, key) -> float:
    """The largest `|eigenvalue|`, to one per cent: the operator norm."""
    product, n = on_vectors(operator, like), trees.size(like)
    if n <= DENSE_UP_TO:
        return float(np.abs(_dense(product, n)).max())
    start = ravel(trees.random_like(key, like))
    image = product(start)
    if not np.isfinite(image).all():
        return np.nan
    return abs(_lanczos(product, n, start, "LM", 1e-2)) if image.any() else 0.0


def _dense(product: Product, n: int) -> np.ndarray:
    matrix = np.stack([product(unit) for unit in np.eye(n)])
    if not np.isfinite(matrix).all():
        return np.full(n, np.nan)
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def _end(product: Product, n: int, start, which: str, reach: float) -> tuple[float, bool]:
    """One end of the spectrum: to one per cent of itself, else to a thousandth of the norm."""
    from scipy.sparse.linalg import ArpackNoConvergence  # half a second that few runs need

    try:
        return _lanczos(product, n, start, which, 1e-2), True
    except ArpackNoConvergence:  # too near zero; far from zero once shifted by the norm
        sign = 1.0 if which == "LA" else -1.0
        shifted = _lanczos(lambda v: reach * v + sign * product(v), n, start, "LA", 1e-3)
        return sign * (shifted - reach), False


def _lanczos(product: Product, n: int, start: np.ndarray, which: str, tol: float) -> float:
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)  # type: ignore
    options: dict = {"tol": tol, "maxiter": 50, "return_eigenvectors": False}
    found = eigsh(operator, k=1, which=which, v0=start, **options)
    return float(found[0])
