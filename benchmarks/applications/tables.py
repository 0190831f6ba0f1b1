"""Tables: penalties, labels, sources, graphs, and networks that tune themselves."""

import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.applications.row import Row, timed


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


def reweight() -> Iterator[Row]:
    """Four sources of 200 rows, two of them bad; 100 rows are trusted."""
    from bilevel.apps import reweight
    from examples.reweight import four_sources

    sources, trusted = four_sources(0)

    def trained(weights):
        return reweight.train(sources, weights, reweight.squared)

    def weighed():
        return trained(reweight.scalebio(sources, trusted, reweight.squared).weights)

    def loss(model) -> float:
        return float(reweight.losses_of(reweight.squared, model, trusted).mean())

    ours, seconds = timed(weighed)
    theirs, rival = timed(trained, np.full(4, 0.25))
    measure = "squared error on trusted rows"
    yield Row("four sources", measure, "all rows alike", loss(ours), loss(theirs), seconds, rival)


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


def self_tuning() -> Iterator[Row]:
    """Noise, contrast and shift of a network for digits."""
    from bilevel.apps import self_tuning as app
    from examples import self_tuning as example

    train, valid, test = example.digits()
    y0 = app.network(jax.random.key(0), (64, 128, 10))
    ours, seconds = timed(app.tune, example.TUNING, y0, train, valid, steps=example.STEPS)
    nets, rival = timed(example.constants, y0, train)
    judged = np.asarray(jax.vmap(app.cross_entropy, (0, None))(nets, valid))
    best = jax.tree.map(lambda leaf: leaf[np.nanargmin(judged)], nets)
    losses = (float(app.cross_entropy(net, test)) for net in (ours.y, best))
    told = "the best of 16 constant settings"
    yield Row("augmentation, digits", "test loss", told, *losses, seconds, rival)


def representation() -> Iterator[Row]:
    """New regression tasks of six rows, after twenty like them."""
    from sklearn.linear_model import RidgeCV

    from bilevel.apps import representation as rep
    from examples.representation import regression

    train, new, network, options = regression(0)
    found, seconds = timed(
        rep.learn, train, network, "SOBA", steps=600, rate=2e-2, drawn=2, seed=0, **options
    )
    ours = rep.judge(found.x, network, new, **options).mean

    def alone() -> float:
        """Each new task by itself."""
        errors = []
        for inputs, targets, unseen, right in zip(*new.support, *new.query, strict=True):
            model = RidgeCV(np.geomspace(1e-3, 1e2, 20)).fit(inputs, targets)
            errors.append(np.mean((model.predict(unseen) - np.asarray(right)) ** 2))
        return float(np.mean(errors))

    theirs, rival = timed(alone)
    told = "RidgeCV, each task alone"
    yield Row("tasks of six rows", "test squared error", told, ours, theirs, seconds, rival)


PARTS = {
    "dag": dag, "tuning": tuning, "cleaning": cleaning, "reweight": reweight,
    "self_tuning": self_tuning, "representation": representation,
}  # fmt: skip
