"""Test scores beside what people use today, and what a careful reader should be told."""

import warnings

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from bilevel import losses, trees
from bilevel.apps.tuning.search import GRID, Folds, Tuned, fit
from bilevel.apps.tuning.task import Task
from bilevel.apps.tuning.two_levels import Sharing
from bilevel.files import needs
from bilevel.report import mean_and_error

EACH, ALL = "tuned penalties", "one penalty"
FITTED = 0.01  # of the loss on the validation rows: a smaller fall is no fit by chance


def on_test_rows(task: Task, tuned: Tuned) -> dict[str, Float[np.ndarray, " n"]]:
    """The loss of every test row: our penalties, the best common one, and scikit-learn's."""
    common = trees.map(lambda p: np.full(p.shape, tuned.common), tuned.penalties)
    name, ready_made = sklearn_losses(task, tuned.folds, "l1" in tuned.penalties)
    found = {which: losses.losses_of(
            task.loss, fit(task.train, task.loss, task.sharing, p), task.test
        )
             for which, p in ((EACH, tuned.penalties), (ALL, common))}  # fmt: skip
    return {which: np.asarray(values) * task.unit for which, values in found.items()} | {
        name: ready_made * task.unit
    }


def sklearn_losses(task: Task, folds: Folds, elastic: bool) -> tuple[str, Float[np.ndarray, " n"]]:
    """RidgeCV, ElasticNetCV or LogisticRegressionCV with the same folds and penalties."""
    linear = needs("sklearn.linear_model", extra="demo", what="the scores of scikit-learn")
    A, b = task.train
    cv = [tuple(map(np.flatnonzero, (t, v))) for v, t in zip(*folds, strict=True)]
    penalties, n = np.exp(GRID), np.mean([len(train) for train, _ in cv])
    if task.loss is not losses.squared:
        model = linear.LogisticRegressionCV(
            Cs=1 / (penalties * n), cv=cv, scoring="neg_log_loss", max_iter=1000
        )
    elif elastic:
        model = linear.ElasticNetCV(l1_ratio=[0.1, 0.5, 0.9, 1.0], cv=cv)
    else:
        model = linear.RidgeCV(alphas=penalties * n, cv=cv, scoring="neg_mean_squared_error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults that will change
        model.fit(A, b)
    if task.loss is losses.squared:
        return type(model).__name__, (model.predict(task.test.features) - task.test.target) ** 2 / 2
    scores = model.decision_function(task.test.features)
    scores = np.stack([0 * scores, scores], 1) if scores.ndim == 1 else scores
    rows = np.arange(len(scores))
    return type(model).__name__, -log_softmax(scores, axis=1)[rows, task.test.target]


def before(sharing: Sharing, folds: Folds) -> list[str]:
    """What to warn of before anything is tuned."""
    penalties, rows = int(np.prod(sharing.shape)), int((folds.validation > 0).any(0).sum())
    if len(folds.validation) > 1 or penalties * 10 <= rows:
        return []
    return [
        f"{penalties} penalties are chosen by one set of {rows} validation rows, which they can "
        "fit by chance. Use --folds 5, or fewer penalties with --per group."
    ]


def after(tuned: Tuned, found: dict[str, Float[np.ndarray, " n"]], unit: float) -> list[str]:
    """Whether the penalties have fitted the validation rows by chance."""
    first, apart = float(tuned.curve.min()) * unit, mean_and_error(found[EACH] - found[ALL])
    fitted = tuned.validation * unit < (1 - FITTED) * first
    if not fitted or apart.mean <= apart.error:
        return []
    return [
        f"The penalties overfit the validation rows: from one penalty to many their loss fell from "
        f"{first:.4g} to {tuned.validation * unit:.4g}, and the test loss rose from "
        f"{found[ALL].mean():.4g} to {found[EACH].mean():.4g}. Use more folds, a smaller --spread "
        "or fewer penalties."
    ]
