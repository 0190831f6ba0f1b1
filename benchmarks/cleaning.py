"""Wrong labels found by cleaning and by confident learning: F1, accuracy, processor time.

`python -m benchmarks.cleaning [--mnist FOLDER]`. Half of the labels are wrong. Confident learning
(`cleanlab`) is what people use today: it needs no clean samples; here it gets them as further
training samples, which it may not drop. Its classifier is scikit-learn's logistic regression, with
five folds. With a folder of MNIST (`t10k-images-idx3-ubyte.gz` and its labels), it is an MLP and a
small convnet on 2000 pictures instead; the rows of the digits stay as they are kept.

Reference: Northcutt, Jiang, Chuang. "Confident learning: estimating uncertainty in dataset labels".
JAIR 2021, arXiv:1911.00068.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.apps import cleaning
from bilevel.apps.cleaning import Labelled, Task

KEPT = Path(__file__).parent / "results" / "cleaning.json"
COUNTS, SEEDS = (30, 100, 300), 6


class Row(NamedTuple):
    """How well one way of finding wrong labels did on one data set."""

    data: str
    clean: int
    finder: str
    f1: str
    accuracy: str
    processor: float  # seconds a seed, with compilation


def confident(task: Task, seed: int) -> tuple[float, float]:
    """F1 and test accuracy of confident learning."""
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    n = len(task.train.labels)
    inputs = np.concatenate([np.asarray(p.inputs).reshape(len(p.labels), -1) for p in task[:2]])
    labels = np.concatenate([np.asarray(p.labels) for p in task[:2]])
    model = LogisticRegression(max_iter=300)
    probabilities = cross_val_predict(model, inputs, labels, cv=5, method="predict_proba")
    wrong = find_label_issues(labels, probabilities, n_jobs=1)
    wrong[n:] = False
    test = np.asarray(task.test.inputs).reshape(len(task.test.labels), -1)
    accuracy = model.fit(inputs[~wrong], labels[~wrong]).score(test, np.asarray(task.test.labels))
    return cleaning.detection(np.where(wrong[:n], -1.0, 1.0), task.wrong).f1, float(accuracy)


def network(make: Callable, steps: int = 1500) -> Callable[[Task, int], tuple[float, float]]:
    def found(task: Task, seed: int) -> tuple[float, float]:
        model = make(jax.random.key(seed), task.train.inputs, 10)
        result = cleaning.clean(
            task, cleaning.network_settings(), steps=steps, model=model, batch_size=128,
            seed=seed, progress=False, certify=False,
        )  # fmt: skip
        accuracy = cleaning.accuracy(result.y, task.test, model.scores)
        return cleaning.detection(result.x, task.wrong).f1, float(accuracy)

    return found


def mnist(folder: Path, wrong: float, seed: int, clean: int, n: int = 2000) -> Task:
    """The first half of the test set of MNIST to learn from, the second to test."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1) / 255
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(int)
    draw = np.random.default_rng(seed)
    order = draw.permutation(5000)[: n + clean]
    mask = np.zeros(n, bool)
    mask[draw.choice(n, round(n * wrong), replace=False)] = True
    given = labels[order]
    given[:n][mask] = (given[:n][mask] + draw.integers(1, 10, mask.sum())) % 10

    def part(inputs: np.ndarray, labels: np.ndarray) -> Labelled:
        return Labelled(jnp.asarray(inputs, float), jnp.asarray(labels, int))

    train, validation = part(pixels[order[:n]], given[:n]), part(pixels[order[n:]], given[n:])
    return Task(train, validation, part(pixels[5000:], labels[5000:]), mask)


def row(data: str, clean: int, finder: str, find: Callable, tasks: Sequence[Task]) -> Row:
    begin = time.process_time()
    f1, accuracy = np.array([find(task, seed) for seed, task in enumerate(tasks)]).T
    seconds = (time.process_time() - begin) / len(tasks)
    return Row(data, clean, finder, *(str(cleaning.mean(v)) for v in (f1, accuracy)), seconds)


def digits() -> list[Row]:
    found = []
    for clean in COUNTS:
        tasks = [cleaning.digits(seed=seed, clean=clean) for seed in range(SEEDS)]
        begin = time.process_time()
        outcomes = cleaning.over_seeds(tasks)
        seconds = (time.process_time() - begin) / SEEDS
        f1, accuracy, only = (
            str(cleaning.mean(v)) for v in (outcomes.f1, outcomes.accuracy, outcomes.clean_only)
        )
        found += [
            Row("digits", clean, "bilevel, linear", f1, accuracy, seconds),
            row("digits", clean, "confident learning, linear", confident, tasks),
            Row("digits", clean, "clean samples only, linear", "–", only, float("nan")),
        ]
    return found


def pictures(folder: Path, seeds: int = 3) -> list[Row]:
    found = []
    for clean in COUNTS[:2]:
        tasks = [mnist(folder, 0.5, seed, clean) for seed in range(seeds)]
        finders = {
            "bilevel, MLP": network(cleaning.make_mlp),
            "bilevel, convnet": network(cleaning.make_convnet, steps=500),
            "confident learning, linear": confident,
        }
        found += [row("MNIST", clean, name, find, tasks) for name, find in finders.items()]
    return found


def table(rows: Sequence[Row]) -> str:
    lines = ["| data | clean samples | found by | F1 | test accuracy | processor [s] |"]
    lines.append("|---|---|---|---|---|---|")
    for r in rows:
        seconds = "–" if np.isnan(r.processor) else f"{r.processor:.1f}"
        lines.append(f"| {r.data} | {r.clean} | {r.finder} | {r.f1} | {r.accuracy} | {seconds} |")
    return "\n".join(lines)


def kept() -> list[Row]:
    return [Row(*one) for one in json.loads(KEPT.read_text("utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST")
    asked = parser.parse_args()
    found = digits() if asked.mnist is None else pictures(asked.mnist)
    rows = [row for row in kept() if row.data != found[0].data] + found
    KEPT.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
