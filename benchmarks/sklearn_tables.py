"""The estimators of `bilevel.sklearn` beside scikit-learn's, on the tables that it ships.

    python -m benchmarks.sklearn_tables

Each table is split into halves five times; a score is the mean over the splits, and a difference
has the standard error of its mean over them. Splits of one table share rows, so the errors are a
little too small. The table in `docs/sklearn.md` is the beginning of what this prints.
"""

import warnings

import numpy as np
from sklearn import datasets
from sklearn.linear_model import ElasticNetCV, LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel.report import mean_and_error
from bilevel.sklearn import (
    BilevelElasticNet,
    BilevelLogisticRegression,
    BilevelRidge,
    LabelCleaner,
)

SPLITS = 5
CLASSES = {
    "breast cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
    "digits, 400 rows": datasets.load_digits,
}


def numbers(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tables with a number to predict; of the made one, 10 features of 60 matter."""
    made = datasets.make_regression(200, 60, n_informative=10, noise=50.0, random_state=seed)
    diabetes = datasets.load_diabetes(return_X_y=True)
    return {
        "diabetes": diabetes,
        "diabetes, 60 columns of noise": (
            np.c_[diabetes[0], np.random.default_rng(seed).normal(size=(442, 60))],
            diabetes[1],
        ),
        "made: 10 features of 60 matter": made,
        "linnerud (weight)": (
            datasets.load_linnerud().data,
            datasets.load_linnerud().target[:, 0],
        ),
    }


def compared(name: str, ours, theirs, score, splits) -> str:
    """A row of a table: the two scores, and the difference with its error."""
    found = []
    for X, X_test, y, y_test in splits:
        models = [make_pipeline(StandardScaler(), model).fit(X, y) for model in (ours, theirs)]
        found.append([score(model, X_test, y_test) for model in models])
    mine, other = np.array(found).T
    difference = mean_and_error(mine - other)
    return (
        f"| {name} | {len(splits[0][0])} | {type(ours).__name__} {mine.mean():.3f} | "
        f"{type(theirs).__name__} {other.mean():.3f} | {difference.mean:+.3f} ± "
        f"{difference.error:.3f} |"
    )


def negative_log_loss(model, X, y) -> float:
    return -log_loss(y, model.predict_proba(X), labels=model.classes_)


def r_squared(model, X, y) -> float:
    return model.score(X, y)


def cleaned(name: str, load) -> str:
    """Test accuracy after a fifth of the labels of the training rows became another."""
    found = []
    for seed in range(SPLITS):
        X, X_test, y, y_test = halves(*load(return_X_y=True), seed, True)
        draw = np.random.default_rng(seed)
        classes = int(y.max()) + 1
        shift = np.where(draw.random(len(y)) < 0.2, draw.integers(1, classes, len(y)), 0)
        given = (y + shift) % classes
        inner = LogisticRegression(max_iter=1000)
        some = np.zeros(len(y), bool)
        some[draw.choice(len(y), 30, replace=False)] = True
        known = np.where(some, y, given)
        scale = StandardScaler().fit(X)
        X, X_test = scale.transform(X), scale.transform(X_test)
        models = (
            inner.fit(X, given).score(X_test, y_test),
            LabelCleaner(inner).fit(X, given).score(X_test, y_test),
            LogisticRegression(max_iter=1000).fit(X, known).score(X_test, y_test),
            LabelCleaner(inner).fit(X, known, clean=some).score(X_test, y_test),
        )
        found.append(models)
    plain, alone, better, helped = np.array(found).T
    told = [mean_and_error(alone - plain), mean_and_error(helped - better)]
    gains = " | ".join(f"{one.mean:+.3f} ± {one.error:.3f}" for one in told)
    return (
        f"| {name} | {plain.mean():.3f} | {alone.mean():.3f} | {better.mean():.3f} | "
        f"{helped.mean():.3f} | {gains} |"
    )


def halves(X, y, seed: int, classes: bool):
    half = min(len(y) // 2, 400)
    return train_test_split(
        X, y, train_size=half, random_state=seed, stratify=y if classes else None
    )


def main() -> None:
    warnings.simplefilter("ignore")  # of defaults that will change
    alphas = np.geomspace(1e-3, 1e4, 30)
    print(
        "| table | rows to train on | R², one penalty a feature | R², scikit-learn | difference |"
    )
    print("|---|---|---|---|---|")
    for name in numbers(0):
        splits = [halves(*numbers(seed)[name], seed, False) for seed in range(SPLITS)]
        print(compared(name, BilevelRidge(), RidgeCV(alphas, cv=5), r_squared, splits), flush=True)
        net = ElasticNetCV(l1_ratio=[0.1, 0.5, 0.9, 1.0], cv=5)
        print(compared(name, BilevelElasticNet(), net, r_squared, splits), flush=True)
    print("\n| table | rows to train on | log likelihood a row | scikit-learn | difference |")
    print("|---|---|---|---|---|")
    for name, load in CLASSES.items():
        splits = [halves(*load(return_X_y=True), seed, True) for seed in range(SPLITS)]
        theirs = LogisticRegressionCV(cv=5, scoring="neg_log_loss", max_iter=1000)
        ours = BilevelLogisticRegression()
        print(compared(name, ours, theirs, negative_log_loss, splits), flush=True)
    print("\n| table | plain | cleaned | plain, 30 rows right | cleaned, 30 rows right | gain | gain, 30 rows right |")  # noqa: E501  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, load in CLASSES.items():
        print(cleaned(name, load), flush=True)


if __name__ == "__main__":
    main()
