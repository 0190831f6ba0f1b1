"""Penalties by hypergradient against scikit-learn's cross-validation, on rows held out.

    python -m benchmarks.tuning --a9a FOLDER --seeds 3

Breast cancer and diabetes come with scikit-learn; a9a is read from a folder with the files `a9a`
and `a9a.t` of LIBSVM, and `--rows` of its training rows are drawn. Every line is a mean over the
seeds, which decide rows and folds; the standard error of a difference is row by row within a seed.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from benchmarks.harness import RESULTS, machine
from bilevel import losses, report
from bilevel.apps import tuning
from bilevel.apps.tuning import judge
from bilevel.apps.tuning.task import Task
from bilevel.global_search import double_precision
from bilevel.losses import Rows


def libsvm(path: pathlib.Path, d: int = 123) -> Rows:
    """Rows of `label number:value ...`, numbered from 1."""
    lines = path.read_text("ascii").splitlines()
    features, target = np.zeros((len(lines), d)), np.zeros(len(lines), int)
    for i, line in enumerate(lines):
        label, *entries = line.split()
        target[i] = float(label) > 0
        for entry in entries:
            number, value = entry.split(":")
            if not 1 <= int(number) <= d:
                raise ValueError(
                    f"{path}, line {i + 1}: {entry}; a number from 1 to {d} is needed."
                )
            features[i, int(number) - 1] = float(value)
    return Rows(features, target)


def split(rows: Rows, seed: int, share: float = 0.25) -> tuple[Rows, Rows]:
    order = np.random.default_rng(seed).permutation(len(rows.target))
    test, train = np.split(order, [int(share * len(order))])
    return tuple(Rows(*(part[which] for part in rows)) for which in (train, test))


def task(train: Rows, test: Rows) -> Task:
    center, scale = train.features.mean(0), train.features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    unit, d = 1.0, train.features.shape[1]
    binary = np.issubdtype(train.target.dtype, np.integer)
    train, test = (
        rows._replace(features=(rows.features - center) / scale) for rows in (train, test)
    )
    if not binary:
        mean, deviation = train.target.mean(), train.target.std()
        train, test = (
            rows._replace(target=(rows.target - mean) / deviation) for rows in (train, test)
        )
        unit = 2 * deviation**2
    names = tuple(map(str, range(d)))
    loss = losses.logistic if binary else losses.squared
    return Task(train, test, names, names, tuning.per_feature(d), (), loss, "", unit)


def compare(given: Task, seed: int, **options) -> dict:
    """Test losses, and how far the tuned penalties are from each of the others."""
    began = time.process_time()
    with double_precision():
        tuned = tuning.tune(given.train, given.loss, given.sharing, seed=seed, **options)
        seconds = time.process_time() - began
        found = judge.on_test_rows(given, tuned)
    ours = found[judge.EACH]
    return {
        "test": {name: float(values.mean()) for name, values in found.items()},
        "apart": {name: report.mean_and_error(ours - values)._asdict()
                  for name, values in found.items() if name != judge.EACH},
        "validation": [float(tuned.curve.min()) * given.unit, tuned.validation * given.unit],
        "processor seconds": seconds,
    }  # fmt: skip


def measure(a9a: pathlib.Path | None, rows: int, seeds: int) -> dict[str, list[dict]]:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    found: dict[str, list[dict]] = {}
    whole = a9a and (libsvm(a9a / "a9a"), libsvm(a9a / "a9a.t"))
    for seed in range(seeds):
        tasks = {
            "breast cancer": task(*split(Rows(*load_breast_cancer(return_X_y=True)), seed)),
            "diabetes": task(*split(Rows(*load_diabetes(return_X_y=True)), seed)),
        }
        if whole:
            some = np.random.default_rng(seed).permutation(len(whole[0].target))[:rows]
            tasks[f"a9a, {rows} rows"] = task(Rows(*(part[some] for part in whole[0])), whole[1])
        runs = [(name, given, {}) for name, given in tasks.items()]
        alone = {"folds": 1, "spread": 30.0}
        runs.append(("breast cancer, one validation set", tasks["breast cancer"], alone))
        for name, given, options in runs:
            found.setdefault(name, []).append(compare(given, seed, **options))
            print(seed, name, json.dumps(found[name][-1]), flush=True)
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Means over the seeds, in Markdown."""
    lines = [
        "| data | tuned penalties | one penalty | scikit-learn | tuned − scikit-learn, each seed |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        theirs = next(n for n in runs[0]["test"] if n not in (judge.EACH, judge.ALL))
        means = [np.mean([run["test"][n] for run in runs]) for n in (judge.EACH, judge.ALL, theirs)]
        apart = ", ".join(
            f"{run['apart'][theirs]['mean']:+.2g} ± {run['apart'][theirs]['error']:.1g}"
            for run in runs
        )
        lines.append(f"| {name} | {' | '.join(f'{mean:.4g}' for mean in means)} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--a9a", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    found = measure(asked.a9a, asked.rows, asked.seeds)
    print(table(found))
    kept = {"machine": machine(), "found": found}
    (RESULTS / "tuning.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
