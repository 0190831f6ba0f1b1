"""ScaleBiO on four sources of a linear regression, of which two are bad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.apps.llm.mixing import scalebio
from bilevel.updates import FromOptax


def world(seed=0):
    """Two clean sources, one of the negated parameter, one of noise; clean trusted samples."""
    draw = np.random.default_rng(seed)
    w = draw.normal(size=10)

    def rows(n, sign=1.0, noise=0.1):
        a = draw.normal(size=(n, 10))
        return jnp.asarray(a), jnp.asarray(sign * a @ w + noise * draw.normal(size=n))

    return (rows(200), rows(200), rows(200, -1.0), rows(200, 0.0, 5.0)), rows(100)


def loss(y, rows):
    a, b = rows
    return jnp.mean((a @ y - b) ** 2) / 2 + 5e-4 * y @ y


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_bad_sources_lose_their_weight_and_equal_ones_keep_theirs(penalty):
    sources, trusted = world()
    adam = FromOptax(optax.adamw, 1e-2, weight_decay=0.0)
    found = bl.solve(
        scalebio.problem(loss), scalebio.method(adam, adam, penalty), jnp.zeros(4), jnp.zeros(10),
        data=scalebio.data(sources, trusted, 16, 64), steps=3000, log_every=3000, certify=False,
        progress=False,
    )  # fmt: skip
    p = np.asarray(scalebio.weights(found.x))
    assert p[2:].max() < 0.02
    assert max(p[0] / p[1], p[1] / p[0]) < 1.3
    assert loss(found.y, trusted) < 0.05


@pytest.mark.slow
def test_the_error_of_the_direction_falls_as_one_over_the_penalty():
    """With exact solves: against central differences of the value function, and its signs."""
    sources, trusted = world()
    with_ridge = [
        (a.T @ a / len(a) + 1e-3 * np.eye(10), a.T @ b / len(a))
        for a, b in jax.tree.map(np.asarray, sources)
    ]
    v = tuple(map(np.asarray, trusted))
    F = v[0].T @ v[0] / 100 + 1e-3 * np.eye(10), v[0].T @ v[1] / 100

    def y_star(x, share=0.0):
        p = np.exp(x) / np.exp(x).sum()
        parts = [*zip(p, with_ridge, strict=True), (share, F)]
        return np.linalg.solve(sum(s * h for s, (h, _) in parts), sum(s * c for s, (_, c) in parts))

    def value(x):
        return float(loss(jnp.asarray(y_star(x)), trusted))

    exact = np.array([(value(e) - value(-e)) / 2e-5 for e in 1e-5 * np.eye(4)])
    assert (np.sign(exact) == [-1, -1, 1, 1]).all()
    errors = []
    for penalty in (100.0, 1000.0):
        slope = jax.grad(scalebio.problem(loss).lower)
        near, far = (jnp.asarray(y_star(np.zeros(4), share)) for share in (1 / penalty, 0.0))
        d = penalty * (slope(jnp.zeros(4), near, sources) - slope(jnp.zeros(4), far, sources))
        errors.append(np.linalg.norm(d - exact) / np.linalg.norm(exact) * penalty)
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
