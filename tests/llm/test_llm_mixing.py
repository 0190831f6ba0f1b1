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


@pytest.mark.slow
def test_doge_collapses_on_one_of_two_good_sources():
    found = solved(
        doge.problem(loss, 1.0), doge.method(bl.updates.SGD(1e-2)), doge.start(4, jnp.zeros(10))
    )
    p = np.asarray(mixture.weights(found.x))
    print(p, found.mean)
    assert p[2:].max() < 0.02
    assert p[:2].max() > 0.9
