"""ScaleBiO and DoGE on four sources of a linear regression, of which two are bad (spec 5.5)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.apps.llm.mixing import doge, mixture, scalebio
from bilevel.updates import FromOptax


def world(seed=0):
    """Two clean sources, one of the negated parameter, one of noise; clean trusted samples."""
    draw = np.random.default_rng(seed)
    w = draw.normal(size=10)

    def rows(n, sign=1.0, noise=0.1):
        a = draw.normal(size=(n, 10))
        return jnp.asarray(a), jnp.asarray(sign * a @ w + noise * draw.normal(size=n))

    return (rows(200), rows(200), rows(200, -1.0), rows(200, 0.0, 5.0)), rows(100)


SOURCES, TARGET = world()
ADAM = FromOptax(optax.adamw, 1e-2, weight_decay=0.0)
QUIET = {"steps": 3000, "log_every": 3000, "certify": False, "progress": False}


def loss(y, rows):
    a, b = rows
    return (a @ y - b) ** 2 / 2 + 5e-4 * y @ y


def solved(problem, method, start):
    data = mixture.data(SOURCES, TARGET, 16, 64)
    return bl.solve(problem, method, start, jnp.zeros(()), data=data, **QUIET).x


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
def test_bad_sources_lose_their_weight_and_equal_ones_keep_theirs(penalty):
    found = solved(
        scalebio.problem(loss, penalty),
        scalebio.method(ADAM, ADAM),
        scalebio.start(4, jnp.zeros(10)),
    )
    p = np.asarray(mixture.weights(found.x))
    assert p[2:].max() < 0.02
    assert max(p[0] / p[1], p[1] / p[0]) < 1.3
    assert loss(found.y, TARGET).mean() < 0.01


def test_the_slope_of_the_weights_is_the_hypergradient_up_to_one_over_the_penalty():
    """With exact solves in NumPy; the hypergradient by central differences."""
    lowers = [(a.T @ a / 200 + 1e-3 * np.eye(10), a.T @ b / 200) for a, b in map(_numpy, SOURCES)]
    a, b = _numpy(TARGET)
    upper = a.T @ a / 100 + 1e-3 * np.eye(10), a.T @ b / 100

    def y_star(x, share=0.0):
        p = np.exp(x) / np.exp(x).sum()
        H, r = (
            sum(w * part[i] for w, part in zip(p, lowers, strict=True)) + share * upper[i]
            for i in range(2)
        )
        return np.linalg.solve(H, r)

    def value(x):
        y = y_star(x)
        return ((a @ y - b) ** 2).mean() / 2 + 5e-4 * y @ y

    exact = np.array([(value(e) - value(-e)) / 2e-5 for e in 1e-5 * np.eye(4)])
    assert np.sign(exact).tolist() == [-1, -1, 1, 1]
    errors, none = [], np.zeros(4)
    for penalty in (10.0, 100.0, 1000.0):
        y, z = (jnp.asarray(y_star(none, share)) for share in (1 / penalty, 0.0))
        down = scalebio.problem(loss, penalty).hypergradient
        assert down is not None
        d = down(scalebio.Copies(jnp.zeros(4), y, z), jnp.zeros(()), bl.Batch(TARGET, SOURCES))
        errors.append(np.linalg.norm(d.x - exact) / np.linalg.norm(exact) * penalty)
        np.testing.assert_allclose(d.y, 0, atol=1e-9)  # y and z are at rest there
        np.testing.assert_allclose(d.z, 0, atol=1e-9)
    assert errors[1] == pytest.approx(errors[2], rel=0.05)
    assert errors[0] == pytest.approx(errors[2], rel=0.3)


def _numpy(rows):
    return tuple(map(np.asarray, rows))


def test_corrupted_rows_of_a_source_get_small_weights():
    """A weight each: the first 40 of 200 rows have answers of the wrong sign."""
    a, b = SOURCES[0]
    mixed = a, b.at[:40].multiply(-1)
    found = bl.solve(
        scalebio.problem(loss, 10.0),
        scalebio.method(ADAM, FromOptax(optax.adam, 5e-2)),
        scalebio.start(200, jnp.zeros(10)),
        jnp.zeros(()),
        data=mixture.row_data([mixed], TARGET, 32, 64),
        **QUIET | {"steps": 1500},
    ).x
    p = np.asarray(mixture.weights(found.x))
    assert p[:40].sum() < 0.02
    assert loss(found.y, TARGET).mean() < 0.02


@pytest.mark.slow
def test_doge_collapses_on_one_of_two_good_sources():
    found = solved(
        doge.problem(loss, 1.0), doge.method(bl.updates.SGD(1e-2)), doge.start(4, jnp.zeros(10))
    )
    p = np.asarray(mixture.weights(found.x))
    assert p[2:].max() < 0.02
    assert p[:2].max() > 0.9
    assert np.asarray(found.mean)[:2].max() > 0.9
