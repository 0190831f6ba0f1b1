"""DARTS: mixed and fixed cells, what is kept of them, and planted operations."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps import architecture
from bilevel.apps.architecture import Cell, Operation

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import architecture as example


def test_a_mixture_with_all_weight_on_one_operation_is_the_fixed_cell():
    cell = Cell(nodes=3)
    weights, h = cell.weights(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (5, 3))
    chosen = {"0-1": "tanh", "0-2": "linear", "1-2": "square"}
    names = list(cell.operations)
    logits = {
        e: jnp.full(len(names), -jnp.inf).at[names.index(o)].set(0.0) for e, o in chosen.items()
    }
    W = np.asarray(weights["0-2"]["linear"])
    expected = np.asarray(h) @ W + np.tanh(2 * np.asarray(h)) ** 2
    np.testing.assert_allclose(cell.fixed(chosen, weights, h), expected, rtol=1e-12)
    np.testing.assert_allclose(cell(logits, weights, h), expected, rtol=1e-12)


def test_the_strongest_edges_stay_and_zero_is_never_chosen():
    cell = Cell(nodes=4)  # identity, tanh, square, zero, linear
    strong = {"0-3": 3.0, "1-3": 1.0, "2-3": 2.0}
    x = {
        e: jnp.array([0.0, strong.get(e, 0.5), 0.0, 9.0 if e == "0-1" else 0.0, 0.1])
        for e in cell.edges
    }
    found = cell.discretise(x, incoming=2)
    assert found == {"0-1": "tanh", "0-2": "tanh", "1-2": "tanh", "0-3": "tanh", "2-3": "tanh"}
    dropped = cell.fixed(found, cell.weights(jax.random.key(0), 2), jnp.ones((1, 2)))
    assert np.isfinite(np.asarray(dropped)).all()


def test_operations_of_the_user():
    scale = Operation(lambda w, h: w * h, lambda key, width: jnp.ones(()))
    cell = Cell(operations={"scale": scale, "cube": Operation(lambda _, h: h**3)})
    weights = cell.weights(jax.random.key(0), 2)
    assert list(weights["0-1"]) == ["scale"]
    got = cell(cell.logits(), weights, jnp.full((1, 2), 2.0))
    np.testing.assert_allclose(got, (2 + 8) / 2)


def test_price_of_a_search():
    assert architecture.equal_trials(Cell()) == 20
    assert architecture.equal_trials(Cell(), second_order=False) == 10


@pytest.mark.slow
@pytest.mark.parametrize("second_order", [False, True])
def test_planted_operation_is_found_in_ten_of_ten(second_order):
    last = np.asarray(example.ten(second_order))[:, -1]
    planted = np.arange(10) % 5
    np.testing.assert_array_equal(last.argmax(1), planted)
    assert (last[np.arange(10), planted] > 0.8).sum() >= 9


@pytest.mark.slow
def test_search_and_training_again():
    found = example.against_random(2, trials=3)
    assert found["DARTS"][1] < 1.1 * found["planted"][1]
    assert found["planted"][1] == pytest.approx(0.01, rel=0.1)  # the variance of the noise
