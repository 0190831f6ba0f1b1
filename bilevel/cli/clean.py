"""`bilevel clean`: the samples of a file whose labels are wrong, from a few clean ones."""

import csv
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from bilevel import options, report
from bilevel.apps import cleaning
from bilevel.apps.cleaning import models
from bilevel.apps.cleaning.files import Given, read
from bilevel.apps.cleaning.models import Model
from bilevel.cli import pictures
from bilevel.cli.options import Clean
from bilevel.driver import Outcome, Result
from bilevel.errors import Refused
from bilevel.files import load_function

COLUMNS = ("sample", "label", "weight", "suspected", "predicted")
SHOWN = 20  # suspects in the report


def run(asked: Clean) -> bool:
    """Read, learn the weights, write the folder; whether the run ended well.

    Raises:
        ValueError, OSError, ImportError: in one sentence, with nothing written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    _check_new(asked.out)
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    given = read(asked.data, asked.clean, asked.test, asked.target)
    task, key = given.task, jax.random.key(asked.seed)
    model = _model(asked.model, key, given)
    n = len(task.train.labels)
    console.print(
        f"{n} samples of {len(given.classes)} classes, {len(task.validation.labels)} clean ones.",
        markup=False,
    )
    linear = asked.model == "linear"
    flat = np.asarray(task.train.inputs).reshape(n, -1)
    method = (
        cleaning.settings(cleaning.curvature(flat))["SOBA"]
        if linear
        else cleaning.network_settings(asked.rate)
    )
    batch = asked.batch if linear or asked.batch else 128
    result = cleaning.clean(
        task,
        method,
        steps=asked.steps,
        model=model,
        batch_size=None if batch is None else min(batch, n),
        weight=asked.self_paced,
        decay=asked.decay,
        seed=asked.seed,
    )
    if result.status.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    if result.status.outcome is Outcome.DIVERGED:
        raise Refused(f"{result.status} Nothing is written.")
    rows = _rows(given, model, result)
    _save(asked, given, result, rows, _accuracies(given, model, result, asked.decay))
    suspected = sum(row[3] == "yes" for row in rows)
    console.print(f"{suspected} of {n} labels are suspected. Written to {asked.out}.", markup=False)
    return result.status.ok


def _check_new(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder. Choose another --out.")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to make {out.name} in.")


def _model(name: str, key: jax.Array, given: Given) -> Model:
    """The classifier that `--model` names, checked against the samples."""
    make = models.MAKERS.get(name)
    if make is None and ":" not in name:
        known = ", ".join(models.MAKERS)
        raise ValueError(f"--model is {name!r}; {known}, or module:function is needed.")
    make = load_function(name) if make is None else make
    try:
        made = make(key, given.task.train.inputs, len(given.classes))
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--model {name} failed: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise ValueError(f"--model {name} returned no pair (scores, params).")
    model = Model(*made)
    models.check(model, given.task, len(given.classes))
    return model


def _rows(given: Given, model: Model, result: Result) -> list[tuple[str, ...]]:
    """A line for each training sample, in the order of the file."""
    weights, y = np.asarray(cleaning.weights(result.x)), result.y
    codes = np.argmax(np.asarray(model.scores(y, given.task.train.inputs)), axis=1)
    labels = np.asarray(given.task.train.labels)
    return [
        (place, given.classes[label], f"{w:.4f}", "yes" if w < 0.5 else "no", given.classes[code])
        for place, label, w, code in zip(given.places, labels, weights, codes, strict=True)
    ]


def _accuracies(given: Given, model: Model, result: Result, decay: float) -> dict[str, float]:
    """On the test samples, where there are any: without cleaning, and after it."""
    task, scores = given.task, model.scores
    if not len(task.test.labels):
        return {}
    of = {
        "all samples as they are": cleaning.train(task.train, model.params, scores, decay),
        "clean samples only": cleaning.train(task.validation, model.params, scores, decay),
        "after cleaning": cleaning.retrain(task, result.x, model.params, scores, decay),
    }
    return {name: float(cleaning.accuracy(y, task.test, scores)) for name, y in of.items()}


def _save(
    asked: Clean,
    given: Given,
    result: Result,
    rows: list[tuple[str, ...]],
    accuracies: dict[str, float],
) -> None:
    """The folder, whole or not at all."""
    suspects = sorted((row for row in rows if row[3] == "yes"), key=lambda row: float(row[2]))
    with tempfile.TemporaryDirectory(dir=asked.out.absolute().parent) as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        for name, lines in (("weights.csv", rows), ("suspects.csv", suspects)):
            with (part / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *lines])
        sections = _sections(asked, given, result, rows, suspects, accuracies)
        report.write(part / "report.html", "Suspected labels", sections)
        if asked.out.exists():
            asked.out.rmdir()
        shutil.move(part, asked.out)


def _sections(asked, given, result, rows, suspects, accuracies) -> list[report.Section]:
    n, clean = len(rows), len(given.task.validation.labels)
    cards = [(f"{len(suspects)} of {n}", "labels are suspected"), (f"{clean}", "clean samples")]
    cards += [(f"{value:.3f}", f"test accuracy, {name}") for name, value in accuracies.items()]
    learned = {asked.model: np.asarray(cleaning.weights(result.x))}
    told = (
        "A sample of weight below one half is suspected. Look at the suspects before you drop or "
        "relabel them: a rare but right sample may be among them."
    )
    table = report.Table(COLUMNS[:3] + COLUMNS[4:], [(*r[:3], r[4]) for r in suspects[:SHOWN]])
    figure = report.Figure(pictures.histograms(learned), "Learned weights of all samples.")
    shown = f"The {min(SHOWN, len(suspects))} smallest weights; all are in suspects.csv."
    return [
        report.Section("In short", [report.Numbers(cards), report.Text(told)]),
        report.Section("Suspects", [report.Text(shown), table] if suspects else []),
        report.Section("Weights", [figure]),
        *report.of({asked.model: result}),
        report.Section(
            "Options", [report.Table(("option", "value", "what it is"), options.rows(asked))]
        ),
    ]
