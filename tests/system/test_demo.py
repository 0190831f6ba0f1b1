"""Hyper-cleaning of the digits: wrong labels are found, and the numbers are those of the docs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps import cleaning

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def task() -> cleaning.Task:
    return cleaning.digits(wrong=0.5, seed=0)


@pytest.fixture(scope="module")
def references(task) -> dict[str, float]:
    return cleaning.references(task)


def test_digits_are_split_and_spoiled_as_asked(task):
    assert [len(part.labels) for part in task[:3]] == [800, 300, 697]
    assert task.wrong.sum() == 400
    right = cleaning.digits(wrong=0.0, seed=0)
    differs = np.asarray(right.train.labels != task.train.labels)
    np.testing.assert_array_equal(differs, task.wrong)
    assert set(np.unique(task.train.labels)) == set(range(10))


def test_the_seed_decides_everything(task):
    again, other = cleaning.digits(0.5, seed=0), cleaning.digits(0.5, seed=1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), task, again)
    assert all(jax.tree.leaves(same))
    assert bool((task.train.labels != other.train.labels).any())


def test_references_are_those_of_the_docs(references):
    assert references["all data"] == pytest.approx(0.808, abs=0.03)
    assert references["validation only"] == pytest.approx(0.944, abs=0.015)
    assert references["oracle"] == pytest.approx(0.944, abs=0.015)


@pytest.mark.parametrize("name", cleaning.settings())
def test_a_short_run_of_every_method_is_a_clear_gain(name, task, references):
    steps = cleaning.equal_cost(500)[name]
    result = cleaning.clean(task, cleaning.settings()[name], steps=steps, certify=False)
    assert result.status.ok
    assert result.history["test accuracy"][-1] > references["all data"] + 0.08
    assert cleaning.detection(result.x, task.wrong).f1 > 0.85


def test_soba_reaches_the_accuracy_of_the_docs(task):
    result = cleaning.clean(task, cleaning.settings()["SOBA"], steps=4000, certify=False)
    assert result.history["test accuracy"][-1] >= 0.93
    assert cleaning.detection(result.x, task.wrong).f1 >= 0.9


def test_the_same_seed_gives_the_same_weights(task):
    method = cleaning.settings()["TTSA"]
    one, two = (cleaning.clean(task, method, steps=20, seed=3, certify=False) for _ in range(2))
    np.testing.assert_array_equal(one.x, two.x)


def test_mini_batches_find_their_weights(task):
    x = jnp.arange(800.0) / 100 - 4
    y = cleaning.start(task)[1]
    numbers = jnp.array([3, 700])
    part = jax.tree.map(lambda leaf: leaf[numbers], task.train)
    value = cleaning.problem(decay=0.0).lower(x, y, (numbers, part))
    np.testing.assert_allclose(value, np.log(10) * np.mean(1 / (1 + np.exp(-x[numbers]))))


def test_detection_counts():
    x, wrong = jnp.array([-1.0, -2.0, 3.0, 4.0]), np.array([True, False, True, True])
    found = cleaning.detection(x, wrong)
    assert found == cleaning.Detection(precision=0.5, recall=1 / 3, f1=2 / 5)
    nothing = cleaning.detection(jnp.ones(2), np.zeros(2, bool))
    assert all(np.isnan(nothing))


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        cleaning.digits(wrong=1.5)


@pytest.mark.usefixtures("without_sklearn")
def test_without_scikit_learn_the_extra_is_named():
    with pytest.raises(ImportError, match=r"bilevel\[demo\]"):
        cleaning.digits()
