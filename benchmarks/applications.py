"""Applications against what a person would use today: how good the answer is, and what it took.

    python -m benchmarks.applications [--only pruning] [--only dag]

Seconds are of the processor, with compilation, both sides in one process; a ratio above 1 is where
ours takes longer. `--only` measures these rows anew and leaves the others as they are kept.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.harness import RESULTS, machine

KEPT = RESULTS / "applications.json"
SIOUX_FALLS = Path(__file__).parents[1] / "tests" / "data"


class Row(NamedTuple):
    """One task, ours beside a rival."""

    task: str
    measure: str  # of an answer
    rival: str
    ours: float
    theirs: float
    seconds: float
    rival_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.rival_seconds


def timed(call: Callable, *args, **options):
    """What a call returns, and the processor seconds it took."""
    begin = time.process_time()
    found = jax.block_until_ready(call(*args, **options))
    return found, time.process_time() - begin


def tuning() -> Iterator[Row]:
    """Ten penalties of a ridge regression on diabetes, by five folds; scored on rows kept back."""
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, cross_val_score

    from bilevel.sklearn import BilevelRidge

    inputs, target = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    inputs, target = inputs[order] / inputs.std(0), target[order]
    rows, test = slice(120, None), slice(120)

    def error(model) -> float:
        return float(np.mean((model.predict(inputs[test]) - target[test]) ** 2))

    ours, seconds = timed(BilevelRidge().fit, inputs[rows], target[rows])
    search = GridSearchCV(Ridge(), {"alpha": np.geomspace(1e-3, 1e4, 50)}, cv=5)
    theirs, rival = timed(search.fit, inputs[rows], target[rows])
    task, measure = "penalties, diabetes", "test squared error, less is better"
    yield Row(
        task, measure, "one penalty, GridSearchCV", error(ours), error(theirs), seconds, rival
    )
    try:
        import optuna
    except ImportError:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def loss(trial) -> float:
        scales = np.array([trial.suggest_float(f"{i}", 1e-2, 1e2, log=True) for i in range(10)])
        return -cross_val_score(
            Ridge(1.0), inputs[rows] * scales, target[rows], cv=5, scoring="neg_mean_squared_error"
        ).mean()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    begin = time.process_time()
    while (spent := time.process_time() - begin) < seconds:
        study.optimize(loss, n_trials=1)
    scales = np.array(list(study.best_params.values()))
    best = Ridge(1.0).fit(inputs[rows] * scales, target[rows])
    found = float(np.mean((best.predict(inputs[test] * scales) - target[test]) ** 2))
    yield Row(task, measure, "Optuna, equal time", error(ours), found, seconds, spent)


def cleaning() -> Iterator[Row]:
    """Half of the labels of 1000 digits are wrong, 100 others are known to be right."""
    from benchmarks.cleaning import confident
    from bilevel.apps import cleaning

    task = cleaning.digits(clean=100)
    method = cleaning.settings()["SOBA"]
    result, seconds = timed(cleaning.clean, task, method, steps=1000, progress=False, certify=False)
    (f1, _), rival = timed(confident, task, 0)
    ours = float(cleaning.detection(result.x, task.wrong).f1)
    yield Row("wrong labels, digits", "F1", "cleanlab", ours, f1, seconds, rival)


def pruning() -> Iterator[Row]:
    """1 % of a network for digits stays; magnitude at once, and a fifth at a time."""
    from bilevel.apps import pruning
    from examples.pruning import DENSITY, accuracy, digits, loss, network

    train, test = digits(0)
    everything, few = pruning.Unstructured(1.0), pruning.Unstructured(DENSITY)
    start = pruning.one_shot(loss, network(jax.random.key(0)), train, everything, steps=500).params
    ours, seconds = timed(pruning.prune, loss, start, train, few, steps=1000)
    once, once_seconds = timed(pruning.one_shot, loss, start, train, few, steps=1000)
    again, again_seconds = timed(pruning.iterative, loss, start, train, DENSITY, steps=1000)
    found = accuracy(ours.params, test)
    for rival, one, spent in (
        ("magnitude at once", once, once_seconds),
        ("iterative magnitude", again, again_seconds),
    ):
        told = f"{rival}, {one.steps:,} steps against {ours.steps:,}"
        theirs = accuracy(one.params, test)
        yield Row("1 % of a network, digits", "test accuracy", told, found, theirs, seconds, spent)


def dag() -> Iterator[Row]:
    """A graph of 20 variables and 40 edges from 1000 samples."""
    from bilevel.apps.dag import graphs
    from bilevel.apps.dag.notears import notears
    from bilevel.apps.dag.score import covariance
    from bilevel.apps.dag.topo import topo

    sampled = graphs.sample(20, 1000, edges=2, seed=0)
    C = covariance(sampled.data)
    ours, seconds = timed(topo, C, np.random.default_rng(0).permutation(20))
    theirs, rival = timed(notears, C)
    apart = (float(graphs.distance(graphs.cut(W), sampled.W)) for W in (ours.W, theirs))
    yield Row("graph of 20 columns", "wrong edges", "NOTEARS", *apart, seconds, rival)


def network() -> Iterator[Row]:
    """Capacities of 8 links of Sioux Falls; the rival solves as many equilibria."""
    from bilevel.apps import networks

    names = ("sioux_falls_net.tntp", "sioux_falls_trips.tntp")
    links = ["6-8", "8-6", "7-8", "8-7", "9-10", "10-9", "10-16", "16-10"]
    plan = networks.plan(
        networks.read(*(SIOUX_FALLS / name for name in names)),
        networks.Kind.CAPACITIES,
        links,
        price=20000.0,
    )
    evaluator = networks.Evaluator(plan)
    ours, seconds = timed(networks.improve, evaluator, steps=40, progress=False)
    loss = networks.Evaluator(plan).loss
    theirs, rival = timed(
        networks.genetic, loss, len(links), evaluations=evaluator.count, hybrid=False
    )
    told = f"genetic algorithm, {evaluator.count} equilibria each"
    measure = "cost of travel and building / 10⁶"
    values = ours.value / 1e6, theirs.value / 1e6
    yield Row("road capacities, Sioux Falls", measure, told, *values, seconds, rival)


PARTS = {
    "dag": dag, "tuning": tuning, "cleaning": cleaning, "network": network, "pruning": pruning,
}  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| task | measure | ours | theirs | what is used today | seconds, ours / theirs |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        seconds = f"{r.seconds:.2g} / {r.rival_seconds:.2g} = {r.ratio:.2g}"
        values = f"{r.ours:.4g} | {r.theirs:.4g}"
        lines.append(f"| {r.task} | {r.measure} | {values} | {r.rival} | {seconds} |")
    return "\n".join(lines)


def kept() -> list[Row]:
    found = json.loads(KEPT.read_text("utf-8"))["rows"]
    return [Row(*row) for name in PARTS for row in found.get(name, ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    for name in parser.parse_args().only or PARTS:
        print(f"{name} ...", flush=True)
        found = [
            tuple(float(f"{v:.4g}") if isinstance(v, float) else v for v in row)
            for row in PARTS[name]()
        ]
        rows = json.loads(KEPT.read_text("utf-8"))["rows"] if KEPT.exists() else {}
        content = {"machine": machine(), "rows": rows | {name: found}}
        KEPT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(table(kept()))


if __name__ == "__main__":
    main()
