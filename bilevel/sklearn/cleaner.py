"""Learn how much each label can be trusted, then fit any classifier with these weights."""

import functools
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from bilevel import methods, trees
from bilevel.apps.cleaning.digits import Labelled
from bilevel.apps.cleaning.losses import cross_entropy, linear, weights
from bilevel.apps.cleaning.settings import WARM_RATE, WARM_STEPS, curvature
from bilevel.driver import run, train
from bilevel.global_search import double_precision
from bilevel.problem import Problem
from bilevel.sklearn.padded import COLUMNS, ROWS, pad, power_of_two
from bilevel.updates import FromOptax

ABSENT = -1e3  # logit of a padded row: its weight is 0


def _has(method: str):
    def has(self) -> bool:
        inner = self._inner() if not hasattr(self, "estimator_") else self.estimator_
        getattr(inner, method)  # raises AttributeError where there is none
        return True

    return has


class LabelCleaner(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier fitted with learned weights, so that wrong labels count for little.

    The weight of row i is `sigmoid(x_i)`. The lower level trains a linear classifier on the
    weighted doubtful rows; the upper loss is its cross-entropy on the rows that are known to be
    right, with a self-paced term, as in `bilevel.apps.cleaning`. Rows known to be right have
    weight 1. Then `estimator` is fitted to all rows with these weights as `sample_weight`.

    Without `clean` in `fit` all rows serve at both levels. That finds wrong labels as long as most
    are right and the wrong ones follow no pattern.

    Args:
        estimator: a classifier whose `fit` takes `sample_weight`; `LogisticRegression()` if absent.
        steps: of the descent, by `SOBA`.
        weight: of the self-paced term; 0 leaves the paper's upper loss.
        decay: `decay/2 ‖w‖²` of the linear classifier.

    Attributes:
        weights_: (rows,), between 0 and 1. Below one half a label is taken for wrong.
        estimator_: the fitted classifier.

    Reference: Franceschi, Donini, Frasconi, Pontil. "Forward and reverse gradient-based
    hyperparameter optimization". ICML 2017, arXiv:1703.01785.
    """

    def __init__(self, estimator=None, *, steps=1000, weight=2.0, decay=1e-3):
        self.estimator = estimator
        self.steps = steps
        self.weight = weight
        self.decay = decay

    def fit(self, X, y, clean=None):
        """Learn the weights, then fit the classifier.

        Args:
            X: (rows, features), numbers; dense.
            y: (rows,), labels, some of them wrong.
            clean: (rows,), true where the label is known to be right.

        Raises:
            TypeError: X is sparse, or the classifier takes no `sample_weight`.
            ValueError: in one sentence.
        """
        checked: Any = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        X, y = checked
        check_classification_targets(y)
        inner = self._inner()
        if not has_fit_parameter(inner, "sample_weight"):
            raise TypeError(
                f"{type(inner).__name__}.fit takes no sample_weight, which LabelCleaner needs. "
                "Of a pipeline, make LabelCleaner the last step."
            )
        if not (isinstance(self.steps, numbers.Integral) and self.steps >= 1):
            raise ValueError(f"steps is {self.steps!r}; a whole number from 1 is needed.")
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {y[0]!r}; at least two are needed.")
        right, doubtful = _parts(clean, len(y))
        scale = X.std(0)
        inputs = (X - X.mean(0)) / np.where(scale > 1e-12 * np.abs(X).max(0), scale, 1.0)
        learned = self._learn(inputs, target, right, doubtful) if doubtful.any() else right
        self.weights_ = np.where(doubtful, learned, 1.0)
        model: Any = clone(inner)
        self.estimator_ = model.fit(X, y, sample_weight=self.weights_)
        return self

    def _inner(self) -> Any:
        return LogisticRegression() if self.estimator is None else self.estimator

    def _learn(self, inputs, target, right, doubtful) -> np.ndarray:
        n, d = inputs.shape
        N, D = power_of_two(n, ROWS), power_of_two(d, COLUMNS)
        x0 = np.full(N, ABSENT)
        x0[:n] = np.where(doubtful, 0.0, ABSENT)
        y0 = {"weights": np.zeros((D, len(self.classes_))), "bias": np.zeros(len(self.classes_))}
        with double_precision():
            data = _Data(
                Labelled(*map(jnp.asarray, (pad(inputs, N, D), pad(target, N)))),
                pad(right / right.sum(), N),
                pad(doubtful / doubtful.sum(), N),
                np.float64(self.weight),
                np.float64(self.decay),
            )
            step = np.float64(1 / curvature(inputs[doubtful]))
            return np.asarray(_clean(data, x0, y0, step, int(self.steps)))[:n]

    @available_if(_has("predict"))
    def predict(self, X):
        """The classifier's."""
        return self._fitted(X, "predict")

    @available_if(_has("predict_proba"))
    def predict_proba(self, X):
        """The classifier's."""
        return self._fitted(X, "predict_proba")

    @available_if(_has("predict_log_proba"))
    def predict_log_proba(self, X):
        """The classifier's."""
        return self._fitted(X, "predict_log_proba")

    @available_if(_has("decision_function"))
    def decision_function(self, X):
        """The classifier's."""
        return self._fitted(X, "decision_function")

    def _fitted(self, X, method):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return getattr(self.estimator_, method)(X)


def _parts(clean, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows the upper and the lower loss see."""
    if clean is None:
        return np.ones(n, bool), np.ones(n, bool)
    mask = np.asarray(clean)
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"clean is {mask.dtype}{list(mask.shape)}; a boolean for each of the {n} rows is "
            "needed, true where the label is known to be right."
        )
    if not mask.any():
        raise ValueError(
            f"clean is false for all {n} rows; one at least must be known to be right. In a "
            "cross-validation each fold needs some: shuffle the rows, as with cv=KFold(5, "
            "shuffle=True), or leave clean out."
        )
    return mask, ~mask


class _Data(NamedTuple):
    samples: Labelled
    right: Any  # (rows,): how much each row counts in the upper loss, with sum one
    doubtful: Any  # (rows,): and in the lower loss, before its weight
    weight: Any
    decay: Any


@functools.partial(jax.jit, static_argnames="steps")
def _clean(data: _Data, x0: Any, y0: PyTree, step: Any, steps: int) -> Array:
    problem = Problem(Partial(_upper, data), Partial(_lower, data))
    y = train(problem, x0, y0, update=FromOptax(optax.adam, WARM_RATE), steps=WARM_STEPS)
    method = methods.SOBA(FromOptax(optax.adam, 0.05), y_update=step, v_update=step)
    state, _ = run(problem, method, method.init(problem, x0, y), steps=steps)
    return weights(state.x)


def _upper(data, x, y, batch):
    loss = cross_entropy(linear, y, data.samples)
    doubt = weights(x) * (loss - math.log(len(y["bias"])) / 2)
    return jnp.sum(data.right * loss) + data.weight * jnp.sum(data.doubtful * doubt)


def _lower(data, x, y, batch):
    loss = cross_entropy(linear, y, data.samples)
    return jnp.sum(data.doubtful * weights(x) * loss) + data.decay / 2 * trees.dot(y, y)
