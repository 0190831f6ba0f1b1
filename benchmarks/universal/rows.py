"""Families that learn from rows of data, whole, in batches, or in blocks.

The best value is SciPy's, on the closed form or on an accurate lower solution in NumPy.
"""

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize, minimize_scalar

import bilevel as bl
from benchmarks.universal.case import Case

LOW, HIGH = -6.0, 4.0  # of the logarithm of a penalty


def regressions(count: int, rows: int, d: int, rng):
    """Training and validation rows of several regressions, where half of the features matter."""
    truth = rng.normal(size=(count, d)) * (np.arange(d) % 2)
    features = rng.normal(size=(count, 2 * rows, d))
    target = np.einsum("bnd,bd->bn", features, truth) + 2.0 * rng.normal(size=(count, 2 * rows))
    return (features[:, :rows], target[:, :rows]), (features[:, rows:], target[:, rows:])


def _moments(part):
    """`(AᵀA, Aᵀb, b²)` of each regression, means over its rows."""
    A, b = part
    return A.mT @ A / A.shape[1], (A.mT @ b[..., None])[..., 0] / A.shape[1], np.mean(b**2, axis=1)


def _ridge(x, moments):
    """The minimisers of `mean (a·y − b)²/2 + Σ exp(x) y²/2`, (blocks, d)."""
    H = moments[0] + np.diag(np.exp(x))
    return np.linalg.solve(H, moments[1][..., None])[..., 0], H


def _best_ridge(training, validation) -> float:
    """The least validation loss over log penalties in [LOW, HIGH], by L-BFGS from three starts."""
    d = training[1].shape[1]
    gram, right, square = validation

    def value(x):
        y, H = _ridge(x, training)
        fit = (gram @ y[..., None])[..., 0]
        off = (fit - right) / len(y)  # ∇_y f
        v = np.linalg.solve(H, off[..., None])[..., 0]
        loss = np.mean(np.sum(y * (fit / 2 - right), axis=1) + square / 2)
        return loss, -np.sum(np.exp(x) * y * v, axis=0)

    starts = (np.full(d, t) for t in (-2.0, 0.0, 1.0))
    bounds = [(LOW, HIGH)] * d
    return min(minimize(value, x, jac=True, bounds=bounds).fun for x in starts)


def finite_sum(n: int, rng) -> Case:
    """One regression of n features with a penalty each, 20 rows a feature, in batches of 64."""
    training, validation = regressions(1, max(200, 4 * n), n, rng)
    loss = _mean_square

    def lower(x, y, batch):
        return loss(y, batch) + jnp.sum(jnp.exp(x) * y**2) / 2

    problem = bl.Problem(
        lambda x, y, batch: loss(y, batch), lower, upper_set=bl.sets.Box(LOW, HIGH)
    )
    first = [tuple(a[0] for a in part) for part in (validation, training)]
    data = bl.Data(*first, batch_size=64)
    moments = _moments(training)
    best = _best_ridge(moments, _moments(validation))
    return Case(
        "finite sum, mini-batches", n, problem, jnp.zeros(n), jnp.zeros(n), best,
        lambda x: _ridge(x, moments)[0][0], data, noisy=True,
    )  # fmt: skip


def blocks(n: int, rng) -> Case:
    """n/5 regressions of 5 features that share 5 penalties, at most 10 drawn a step."""
    count = n // 5
    training, validation = regressions(count, 20, 5, rng)

    def mean_square(y, batch):
        A, b = batch
        return jnp.mean((jnp.einsum("bnd,bd->bn", A, y) - b) ** 2, axis=1) / 2

    problem = bl.Problem(
        lambda x, y, batch: jnp.mean(mean_square(y, batch)),
        lambda x, y, batch: jnp.sum(mean_square(y, batch)) + jnp.sum(jnp.exp(x)[None] * y**2) / 2,
        upper_set=bl.sets.Box(LOW, HIGH),
        blocks=count,
    )
    data = bl.Data(validation, training, blocks=max(1, min(10, count // 2)))
    moments = _moments(training)
    best = _best_ridge(moments, _moments(validation))
    return Case(
        "blocks of ridge regressions", n, problem, jnp.zeros(5), jnp.zeros((count, 5)), best,
        lambda x: _ridge(x, moments)[0], data, noisy=True,
    )  # fmt: skip


def mixture(n: int, rng) -> Case:
    """Logistic loss of a mixture of n experts: weights on the simplex, in batches of 64.

    The leader chooses the logarithm of a penalty on the squares of the weights.
    """
    rows = 1000
    scores = rng.normal(size=(2 * rows, n))
    weights = rng.dirichlet(np.ones(n))
    labels = np.where(
        rng.uniform(size=2 * rows) < _sigmoid(6 * np.sqrt(n) * scores @ weights), 1, -1.0
    )
    signed = 3 * np.sqrt(n) * scores * labels[:, None]
    validation, training = signed[rows:], signed[:rows]

    def lower(x, y, batch):
        return jnp.mean(jnp.logaddexp(0, -batch @ y)) + n * jnp.exp(x[0]) * jnp.sum(y**2) / 2

    problem = bl.Problem(
        lambda x, y, batch: jnp.mean(jnp.logaddexp(0, -batch @ y)),
        lower,
        upper_set=bl.sets.Box(-8.0, 4.0),
        lower_set=bl.sets.Simplex(),
    )

    def answer(x):
        return _on_simplex(training, n * np.exp(float(np.ravel(x)[0])))

    def value(x):
        return float(np.mean(np.logaddexp(0, -validation @ answer(x))))

    tried = min(np.linspace(-8, 4, 13), key=value)
    around = (max(-8, tried - 1), min(4, tried + 1))
    best = minimize_scalar(value, bounds=around, method="bounded", options={"xatol": 1e-3}).fun
    data = bl.Data(validation, training, batch_size=64)
    start = jnp.full(n, 1 / n)
    return Case(
        "logistic, mini-batches, simplex", n, problem, jnp.full(1, 3.0), start,
        min(float(best), value(tried)), answer, data, noisy=True,
    )  # fmt: skip


def _mean_square(y, batch):
    features, target = batch
    return jnp.mean((features @ y - target) ** 2) / 2


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _on_simplex(signed, penalty: float) -> np.ndarray:
    """The follower's answer, by accelerated projected gradients with restarts."""
    n = signed.shape[1]
    step = 1 / (np.linalg.norm(signed, 2) ** 2 / (4 * len(signed)) + penalty)
    y = z = np.full(n, 1 / n)
    t = 1.0
    for _ in range(2000):
        slope = -signed.T @ _sigmoid(-signed @ z) / len(signed) + penalty * z
        new = _projected(z - step * slope)
        if np.abs(new - z).max() < 1e-8 / n:
            return new
        if (z - new) @ (new - y) > 0:
            t = 1.0
        later = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y, z, t = new, new + (t - 1) / later * (new - y), later
    return y


def _projected(z) -> np.ndarray:
    """The nearest point of the simplex."""
    u = np.sort(z)[::-1]
    excess = (np.cumsum(u) - 1) / np.arange(1, len(u) + 1)
    return np.maximum(z - excess[np.count_nonzero(u > excess) - 1], 0)
