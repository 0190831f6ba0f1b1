"""Linear models with one penalty for each feature or group, chosen by cross-validation."""

import numbers
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import check_cv
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bilevel import losses
from bilevel.apps.tuning.search import Folds
from bilevel.losses import RowLoss, Rows
from bilevel.sklearn.penalties import Fitted, Task, fit


class Scaling(NamedTuple):
    """Weighted means and deviations of the columns; 1 for the deviation of a constant."""

    center: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]) -> "Scaling":
        center = np.average(values, axis=0, weights=weights)
        scale = np.sqrt(np.average((values - center) ** 2, axis=0, weights=weights))
        constant = scale <= 1e-12 * np.abs(values).max(0)
        return cls(center, np.where(constant, 1.0, scale))


class _Penalized(BaseEstimator):
    """What the linear models share: parameters, checks, and the way back to the user's units."""

    elastic: ClassVar[bool] = False

    def __init__(self, *, groups=None, cv=5, spread=1.0, max_iter=50):
        self.groups = groups
        self.cv = cv
        self.spread = spread
        self.max_iter = max_iter

    def _check(self, X, y, sample_weight, **checks) -> tuple[Any, Any, Any]:
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, **checks)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if (weights < 0).any() or not weights.any():
            raise ValueError("sample_weight needs numbers of at least 0, and one above 0.")
        if not (isinstance(self.spread, numbers.Real) and self.spread > 0):
            raise ValueError(f"spread is {self.spread!r}; a positive number is needed.")
        if not (isinstance(self.max_iter, numbers.Integral) and self.max_iter >= 1):
            raise ValueError(f"max_iter is {self.max_iter!r}; a whole number from 1 is needed.")
        return X, y, weights

    def _tune(
        self, X, target, weights, loss: RowLoss, outputs: int, folds: Folds
    ) -> tuple[Float[np.ndarray, "outputs d"], Float[np.ndarray, " outputs"]]:
        """Set what the folds say of penalties; return coefficients for X as it is."""
        scaling, groups = Scaling.of(X, weights), _numbered(self.groups, X.shape[1])
        rows = Rows((X - scaling.center) / scaling.scale, target)
        task = Task(rows, weights, folds, groups, outputs)
        found = fit(task, loss, elastic=self.elastic, spread=self.spread, steps=self.max_iter)
        self._keep(found)
        coef = (found.weights / scaling.scale[:, None]).T
        return coef, found.bias - coef @ scaling.center

    def _keep(self, found: Fitted) -> None:
        self.penalties_, self.common_penalty_ = found.penalties["l2"], found.common
        if self.elastic:
            self.l1_penalties_ = found.penalties["l1"]
        self.validation_loss_, self.common_validation_loss_ = found.validation, found.curve.min()
        self.n_iter_ = found.steps


def _merged(X, target, weights, folds: Folds) -> tuple[Any, Any, Any, Folds]:
    """Equal rows as one row of their weights' sum, in a fixed order; rows without weight are gone.

    So a row of weight 2 and two rows of weight 1 are the same input to the last bit. The parts of
    the folds get the sum one.
    """
    some = weights > 0
    of_folds = [np.asarray(part)[:, some] for part in folds]
    table = np.column_stack([X[some], target[some], *(part.T > 0 for part in of_folds)])
    _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)

    def summed(values):
        return np.bincount(which.ravel(), values, len(first))

    parts = (np.stack([summed(row) for row in part]) for part in of_folds)
    parts = Folds(*(part / part.sum(1, keepdims=True) for part in parts))
    return X[some][first], target[some][first], summed(weights[some]), parts


class _Regressor(RegressorMixin, _Penalized):
    def fit(self, X, y, sample_weight=None):
        """Choose the penalties and fit the model.

        Args:
            X: (rows, features), numbers; dense.
            y: (rows,), numbers.
            sample_weight: (rows,), at least 0; a row of weight 2 counts as two.

        Raises:
            TypeError: X is sparse.
            ValueError: in one sentence, before anything is compiled.
        """
        X, y, weights = self._check(X, y, sample_weight, y_numeric=True)
        y = y.astype(np.float64)
        folds = _folds(self.cv, X, y, weights, classifier=False)
        X, y, weights, folds = _merged(X, y, weights, folds)
        unit = Scaling.of(y[:, None], weights)
        target = (y - unit.center) / unit.scale
        coef, intercept = self._tune(X, target, weights, losses.squared, 1, folds)
        self.coef_ = unit.scale[0] * coef[0]
        self.intercept_ = float(unit.scale[0] * intercept[0] + unit.center[0])
        return self

    def predict(self, X):
        """Predictions, (rows,), in the units of y."""
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        return X @ self.coef_ + self.intercept_


class BilevelRidge(_Regressor):
    """Ridge regression with one penalty for each feature or group.

    `min over log penalties x of mean_k loss_k(w_k*(x)) + Σ (x − mean x)² / (2 n spread²)`, where
    fold k's `w_k*(x)` minimises `mean ½ (b − A w)² + ½ Σ_j exp(x_j) w_j²` over the other folds.
    Features and target are standardised inside, so that penalties compare; `coef_` and
    `intercept_` are in the user's units. Everything is float64, whatever JAX is set to.

    Args:
        groups: (features,), labels of any kind: features of the same label share a penalty. Each
            feature has its own when absent.
        cv: folds, as in scikit-learn: a number, a splitter or a list of (train, test).
        spread: standard deviation of log penalties around their mean. Larger ones leave the
            penalties free, and let them fit the held-out rows by chance.
        max_iter: most steps of the descent over penalties.

    Attributes:
        coef_, intercept_: (features,) and a number.
        penalties_: (groups,), in the order of the sorted labels, or (features,).
        common_penalty_: the best one that all share, where the descent starts.
        validation_loss_, common_validation_loss_: half the squared error, in units of the variance
            of y, on the rows held out, with `penalties_` and with the common one.
        n_iter_: steps taken.

    Reference: Pedregosa. "Hyperparameter optimization with approximate gradient". ICML 2016,
    arXiv:1602.02355. The method is MAID: arXiv:2308.10098.
    """


class BilevelElasticNet(_Regressor):
    """Linear regression with two penalties for each feature or group, on `w²` and on `|w|`.

    As `BilevelRidge`, with `Σ_j exp(x₁_j) √(w_j² + 10⁻⁶)` added to the lower loss. The root makes
    the solution differentiable: coefficients become small, not exactly zero. `l1_penalties_` are
    shaped like `penalties_`.
    """

    elastic: ClassVar[bool] = True


class BilevelLogisticRegression(ClassifierMixin, _Penalized):
    """Logistic regression with one penalty for each feature or group; softmax beyond two classes.

    As `BilevelRidge`, with the cross-entropy in the place of half the squared error at both levels.
    The classes share the penalties. `coef_` is (1, features) for two classes and (classes,
    features) for more; `validation_loss_` is a mean cross-entropy in nats.
    """

    def fit(self, X, y, sample_weight=None):
        """Choose the penalties and fit the model.

        Args:
            X: (rows, features), numbers; dense.
            y: (rows,), labels of at least two classes.
            sample_weight: (rows,), at least 0; a row of weight 2 counts as two.

        Raises:
            TypeError: X is sparse.
            ValueError: in one sentence, before anything is compiled.
        """
        X, y, weights = self._check(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {y[0]!r}; at least two are needed.")
        folds = _folds(self.cv, X, y, weights, classifier=True)
        X, target, weights, folds = _merged(X, target, weights, folds)
        binary = len(self.classes_) == 2
        loss, outputs = (losses.logistic, 1) if binary else (losses.softmax, len(self.classes_))
        self.coef_, self.intercept_ = self._tune(X, target, weights, loss, outputs, folds)
        return self

    def decision_function(self, X):
        """Scores: (rows,) for two classes, (rows, classes) for more."""
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X):
        """The likeliest class of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X):
        """Probabilities, (rows, classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Their logarithms."""
        return np.log(self.predict_proba(X))


def _numbered(groups: Any, d: int) -> Int[np.ndarray, " d"]:
    if groups is None:
        return np.arange(d)
    labels = np.asarray(groups)
    if labels.shape != (d,):
        raise ValueError(
            f"groups has the shape {labels.shape} and X {d} features; a label for each is needed."
        )
    return np.unique(labels, return_inverse=True)[1]


def _folds(
    cv: Any, X: np.ndarray, y: Shaped[np.ndarray, " n"], weights: np.ndarray, *, classifier: bool
) -> Folds:
    """How much each row counts in each fold, not yet with sum one."""
    train, held_out = [], []
    splitter: Any = check_cv(cv, y, classifier=classifier)
    for which in splitter.split(X, y):
        for rows, kept in zip(which, (train, held_out), strict=True):
            part = np.zeros(len(weights))
            part[rows] = weights[rows]
            if not part.any():
                raise ValueError(
                    f"fold {len(held_out)} of cv trains on rows of weight zero only, or holds out "
                    "such rows only. Use fewer folds, or shuffle them."
                )
            kept.append(part)
    return Folds(validation=np.array(held_out), train=np.array(train))
