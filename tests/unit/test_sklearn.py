"""The estimators for scikit-learn: its own checks, closed forms, and what users combine."""

import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.feature_selection import SelectFromModel
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from bilevel.sklearn import (
    BilevelElasticNet,
    BilevelLogisticRegression,
    BilevelRidge,
    LabelCleaner,
)
from bilevel.sklearn.padded import pad, power_of_two

EVERY = (
    BilevelRidge(),
    BilevelElasticNet(),
    BilevelLogisticRegression(),
    LabelCleaner(steps=50),
)


def names(estimator):
    return type(estimator).__name__


def table(n=60, d=4, seed=0):
    draw = np.random.default_rng(seed)
    X = 3 + draw.normal(size=(n, d)) * np.arange(1, d + 1)
    return X, X[:, 0] - 2 * X[:, 1] + draw.normal(size=n)


class Programs(logging.Handler):
    """Counts what JAX compiles."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += record.getMessage().startswith("Finished XLA compilation")


@pytest.mark.slow
@pytest.mark.parametrize("estimator", EVERY, ids=names)
def test_every_check_of_scikit_learn_passes_with_few_programs(estimator):
    programs, logger = Programs(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(programs)
    try:
        with jax.log_compiles(True):
            found = estimator_checks.check_estimator(estimator, on_fail=None)
    finally:
        logger.removeHandler(programs)
    assert [one["check_name"] for one in found if one["status"] == "failed"] == []
    assert len(found) > 40
    assert programs.count < 10


@pytest.mark.parametrize("estimator", EVERY, ids=names)
def test_cheap_checks_of_scikit_learn(estimator):
    for check in (
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_estimator_sparse_array,
        estimator_checks.check_complex_data,
    ):
        check(names(estimator), clone(estimator))


def test_sizes_become_powers_of_two():
    assert [power_of_two(n, 16) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    assert pad(np.ones((2, 1)), 3, 2).tolist() == [[1, 0], [1, 0], [0, 0]]


@pytest.mark.slow
def test_ridge_is_the_closed_form_at_its_penalties():
    X, y = table()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    model = BilevelRidge(groups=["a", "b", "a", "b"]).fit(X, y, sample_weight=weights)
    share = weights / weights.sum()
    center, unit = share @ X, np.sqrt(share @ (X - share @ X) ** 2)
    A, b = (X - center) / unit, y - share @ y
    H = A.T @ (share[:, None] * A) + np.diag(model.penalties_[[0, 1, 0, 1]])
    expected = np.linalg.solve(H, A.T @ (share * b)) / unit
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X), share @ y + (X - center) @ expected, rtol=1e-8)
    assert model.penalties_.shape == (2,)
    assert model.validation_loss_ <= model.common_validation_loss_
    assert model.coef_.dtype == np.float64


@pytest.mark.slow
def test_in_a_pipeline_a_search_and_with_names():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    pipe = make_pipeline(StandardScaler(), BilevelRidge(cv=3)).set_output(transform="pandas")
    search = GridSearchCV(pipe, {"bilevelridge__spread": [0.3, 3.0]}, cv=2).fit(X, y)
    assert list(search.best_estimator_[-1].feature_names_in_) == list(X.columns)
    assert search.best_score_ > 0.4
    chosen = SelectFromModel(BilevelRidge()).set_output(transform="pandas").fit(X, y)
    assert "bmi" in chosen.transform(X).columns


@pytest.mark.parametrize(("settings", "told"), [
    ({"spread": 0.0}, "spread is 0.0; a positive number"),
    ({"max_iter": 0}, "max_iter is 0; a whole number from 1"),
    ({"groups": [1, 2]}, r"groups has the shape \(2,\) and X 4 features"),
    ({"cv": [(np.arange(30), np.arange(30, 60))]}, "weight zero only"),
])  # fmt: skip
def test_wrong_uses_of_the_linear_models(settings, told):
    X, y = table()
    weights = (np.arange(60) < 30) if "cv" in settings else None
    with pytest.raises(ValueError, match=told):
        BilevelRidge(**settings).fit(X, y, sample_weight=weights)


def test_wrong_uses_of_the_cleaner():
    X, y = table()
    with pytest.raises(TypeError, match=r"KNeighborsClassifier\.fit takes no sample_weight"):
        LabelCleaner(KNeighborsClassifier()).fit(X, y > 0)
    with pytest.raises(ValueError, match="a boolean for each of the 60 rows"):
        LabelCleaner().fit(X, y > 0, clean=np.arange(3))
    with pytest.raises(ValueError, match="clean is false for all 60 rows"):
        LabelCleaner().fit(X, y > 0, clean=np.zeros(60, bool))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        LabelCleaner().fit(sparse.csr_array(X), y > 0)


def test_bilevel_does_not_import_scikit_learn():
    code = "import bilevel as bl, sys; bl.solve; assert 'sklearn' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_wrong_labels_of_the_example_get_small_weights():
    """Iris, 17 of 100 labels wrong, 20 known: the example finds 16 and doubts one right label."""
    X, y = load_iris(return_X_y=True)
    X, _, y, _ = train_test_split(X, y, train_size=100, random_state=0, stratify=y)
    wrong = (np.arange(100) % 3 == 0) & (np.arange(100) >= 50)
    model = LabelCleaner().fit(X, np.where(wrong, (y + 1) % 3, y), clean=np.arange(100) < 20)
    low = model.weights_ < 0.5
    assert low[wrong].sum() >= 16
    assert low[~wrong].sum() <= 1
