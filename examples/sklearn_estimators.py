"""The estimators for scikit-learn: many penalties in a pipeline, and wrong labels found.

Sixty columns of noise stand beside the ten of the diabetes table. The penalties of the noise should
end larger than those of the table's columns. Then every third label of half of the iris training
rows is made wrong; the cleaner should give most of these a weight below one half, and few others.

    python examples/sklearn_estimators.py
"""

import numpy as np
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel.sklearn import BilevelRidge, LabelCleaner


def many_penalties() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = np.c_[X, np.random.default_rng(0).normal(size=(len(X), 60))]
    X, X_test, y, y_test = train_test_split(X, y, train_size=200, random_state=0)
    common = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(1e-3, 1e4, 30), cv=5)).fit(X, y)
    model = make_pipeline(StandardScaler(), BilevelRidge()).fit(X, y)
    penalties = model[-1].penalties_
    print(f"R² on the test rows: {model.score(X_test, y_test):.3f} with a penalty a feature, "
          f"{common.score(X_test, y_test):.3f} with RidgeCV")  # fmt: skip
    print(f"median penalty: {np.median(penalties[:10]):.3f} of the table's columns, "
          f"{np.median(penalties[10:]):.3f} of noise")  # fmt: skip


def wrong_labels() -> None:
    X, y = load_iris(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, train_size=100, random_state=0, stratify=y)
    wrong = (np.arange(100) % 3 == 0) & (np.arange(100) >= 50)
    given = np.where(wrong, (y + 1) % 3, y)
    model = LabelCleaner().fit(X, given, clean=np.arange(100) < 20)  # 20 labels are known
    low = model.weights_ < 0.5
    print(f"weights below one half: {low[wrong].sum()} of {wrong.sum()} wrong labels, "
          f"{low[~wrong].sum()} of {(~wrong).sum()} right ones")  # fmt: skip
    print(f"test accuracy: {model.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    many_penalties()
    wrong_labels()
