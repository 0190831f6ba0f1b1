"""The estimators of `bilevel.sklearn` beside scikit-learn's, on public tables.

    python -m benchmarks.sklearn_tables --data FOLDER

Each table is split five times into at most 400 rows to train on and at most 2000 others to test on.
A score is the mean over the splits; a difference has the 95 percent interval of its mean, by
Student's t. Splits of one table share rows, so the intervals are a little too narrow. The results
are kept, table by table, and a run goes on behind those that are: remove the file to start anew.
`python -m docs.generate` writes them into `docs/sklearn.md`.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import ElasticNetCV, LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.sklearn_data import Table, tables
from bilevel.sklearn import (
    BilevelElasticNet,
    BilevelLogisticRegression,
    BilevelRidge,
    LabelCleaner,
)

KEPT = Path(__file__).parent / "results" / "sklearn_tables.json"
SPLITS = 5
KNOWN = 30  # rows whose labels are known to be right


class Row(NamedTuple):
    """Two scores on one table; higher is better."""

    part: str  # "R²", "log likelihood a row" or "accuracy"
    table: str
    rows: int  # to train on
    ours: str
    our_score: float
    theirs: str
    their_score: float
    difference: float
    half: float  # half of its 95 percent interval

    @property
    def verdict(self) -> str:
        if not abs(self.difference) > self.half:
            return "no difference"
        return "better" if self.difference > 0 else "**worse**"


def splits(table: Table):
    for seed in range(SPLITS):
        X, y = table.load(seed)
        half = min(len(y) // 2, 400)
        yield train_test_split(
            X, y, train_size=half, test_size=min(len(y) - half, 2000), random_state=seed,
            stratify=y if table.classes else None,
        )  # fmt: skip


def row(part: str, table: str, rows: int, ours: str, theirs: str, scores) -> Row:
    mine, other = np.array(scores).T
    apart = mine - other
    half = stats.t.ppf(0.975, len(apart) - 1) * stats.sem(apart)
    return Row(
        part, table, rows, ours, mine.mean(), theirs, other.mean(), apart.mean(), float(half)
    )


def fitted(table: Table, ours, theirs) -> Row:
    """Linear models; of numbers by R² on test rows, of classes by their log likelihood."""

    def score(model, X, y) -> float:
        if not table.classes:
            return model.score(X, y)
        return -log_loss(y, model.predict_proba(X), labels=model.classes_)

    found, rows = [], 0
    for X, X_test, y, y_test in splits(table):
        models = [make_pipeline(StandardScaler(), clone(one)).fit(X, y) for one in (ours, theirs)]
        found.append([score(model, X_test, y_test) for model in models])
        rows = len(y)
    names = type(ours).__name__, type(theirs).__name__
    return row("log likelihood a row" if table.classes else "R²", table.name, rows, *names, found)


def cleaned(table: Table) -> Row:
    """Test accuracy where a fifth of the labels became another, and a few are known."""
    found, rows = [], 0
    for seed, (X, X_test, y, y_test) in enumerate(splits(table)):
        draw = np.random.default_rng(seed)
        classes, rows = int(y.max()) + 1, len(y)
        shift = np.where(draw.random(rows) < 0.2, draw.integers(1, classes, rows), 0)
        known = np.zeros(rows, bool)
        known[draw.choice(rows, KNOWN, replace=False)] = True
        given = np.where(known, y, (y + shift) % classes)
        scale = StandardScaler().fit(X)
        X, X_test = scale.transform(X), scale.transform(X_test)
        plain = LogisticRegression(max_iter=1000)
        ours = LabelCleaner(plain).fit(X, given, clean=known)
        found.append([one.score(X_test, y_test) for one in (ours, plain.fit(X, given))])
    return row("accuracy", table.name, rows, "LabelCleaner", "LogisticRegression", found)


def measured(table: Table) -> list[Row]:
    """Both comparisons of a table."""
    if table.classes:
        theirs = LogisticRegressionCV(cv=5, scoring="neg_log_loss", max_iter=1000)
        return [fitted(table, BilevelLogisticRegression(), theirs), cleaned(table)]
    net = ElasticNetCV(l1_ratio=[0.1, 0.5, 0.9, 1.0], cv=5)
    ridge = RidgeCV(np.geomspace(1e-3, 1e4, 30), cv=5)
    return [fitted(table, BilevelRidge(), ridge), fitted(table, BilevelElasticNet(), net)]


def shown(rows: Sequence[Row]) -> str:
    """The rows as Markdown, a table for each kind of score."""
    parts = []
    for part in dict.fromkeys(one.part for one in rows):
        parts += [
            f"| table | rows to train on | {part} | scikit-learn | difference | |",
            "|---|---|---|---|---|---|",
        ]
        for one in rows:
            if one.part == part:
                cells = (
                    one.table, str(one.rows), f"`{one.ours}` {one.our_score:.3f}",
                    f"`{one.theirs}` {one.their_score:.3f}",
                    f"{one.difference:+.3f} ± {one.half:.3f}", one.verdict,
                )  # fmt: skip
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    worse = sum(one.verdict == "**worse**" for one in rows)
    better = sum(one.verdict == "better" for one in rows)
    same = len(rows) - better - worse
    count = f"Rows where ours is better: {better}, worse: {worse}, no difference: {same}."
    return "\n".join([*parts, count])


def kept() -> list[Row]:
    return [Row(*one) for one in json.loads(KEPT.read_text("utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the tables that no package brings")
    warnings.simplefilter("ignore")  # of defaults that will change
    rows = kept() if KEPT.exists() else []
    for table in tables(parser.parse_args().data):
        if any(one.table == table.name for one in rows):
            continue
        rows += measured(table)
        KEPT.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(*rows[-2:], sep="\n", flush=True)
    print(shown(rows))


if __name__ == "__main__":
    main()
