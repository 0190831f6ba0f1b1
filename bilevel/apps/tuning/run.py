"""`bilevel tune`: a table in, penalties and an honest comparison out."""

import json
import sys
from typing import Any

import numpy as np
from rich.console import Console

from bilevel import options, report
from bilevel.apps.tuning import judge, pictures
from bilevel.apps.tuning.search import Tuned, fit, make_folds, tune
from bilevel.apps.tuning.settings import Model, Tune
from bilevel.apps.tuning.task import Task, read
from bilevel.driver import Outcome
from bilevel.global_search import double_precision

ENDED_BY_ROUNDING = (Outcome.CONVERGED, Outcome.STALLED)  # for MAID without a tolerance
CAUSES = {"l2": "penalty on w²", "l1": "penalty on |w|"}


def run(asked: Tune) -> None:
    """Read, tune, compare, write the report.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything is tuned.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    out = report.check_writable(asked.out)
    task = read(asked)
    warned = judge.before(task.sharing, make_folds(task.train.target, asked.folds, asked.seed))
    with double_precision():
        tuned = tune(
            task.train,
            task.loss,
            task.sharing,
            elastic=asked.model is Model.ELASTIC_NET,
            folds=asked.folds,
            spread=asked.spread,
            steps=asked.steps,
            seed=asked.seed,
            progress=None,
        )
        if tuned.result.status.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        found = judge.on_test_rows(task, tuned)
        model = fit(task.train, task.loss, task.sharing, tuned.penalties)
    warned += judge.after(tuned, found, task.unit)
    sections = _sections(asked, task, tuned, model, found, warned)
    told = summary(task, tuned, found, warned)
    report.write(out, f"Penalties for {asked.target}", sections, _lead(asked, task))
    if asked.json:
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    console.print(_lead(asked, task), markup=False)
    for which, values in found.items():
        console.print(
            f"  test {task.measure}  {report.mean_and_error(values)!s:18} {which}", markup=False
        )
    for line in [*_verdicts(found), *(f"Warning: {warning}" for warning in warned)]:
        console.print(line, markup=False)
    console.print(f"Report written to {out}", markup=False)


def summary(task: Task, tuned: Tuned, found: dict[str, np.ndarray], warned: list[str]) -> dict:
    """What a program reads."""
    named = {kind: dict(zip(task.penalties, np.ravel(p).tolist(), strict=True))
             for kind, p in tuned.penalties.items()}  # fmt: skip
    return {
        "measure": task.measure,
        "rows": {"train": len(task.train.target), "test": len(task.test.target)},
        "penalties": named,
        "one_penalty": tuned.common,
        "validation": {
            judge.EACH: tuned.validation * task.unit,
            judge.ALL: float(tuned.curve.min()) * task.unit,
        },
        "test": {which: report.mean_and_error(values)._asdict() for which, values in found.items()},
        "differences": {
            which: report.mean_and_error(found[judge.EACH] - values)._asdict()
            for which, values in found.items()
            if which != judge.EACH
        },
        "warnings": warned,
    }


def _lead(asked: Tune, task: Task) -> str:
    names = {True: "penalty", False: "penalties"}
    n, m = len(task.train.target), len(task.test.target)
    held = f"{asked.folds} folds" if asked.folds > 1 else "one validation set"
    return (
        f"{len(task.penalties)} {names[len(task.penalties) == 1]} for {len(task.names)} features, "
        f"chosen on {n} rows by {held}; {m} other rows give the test scores."
    )


def _ended(tuned: Tuned) -> str:
    """How the descent went."""
    norms, steps = tuned.result.history["hypergrad_norm"], tuned.result.stats.steps
    norms = norms[np.isfinite(norms)]
    told = f"{steps} steps from the best common penalty."
    if len(norms):
        told += f" The norm of the hypergradient fell from {norms[0]:.2g} to {norms[-1]:.2g}."
    if tuned.result.status.outcome in ENDED_BY_ROUNDING:
        return f"{told} Rounding leaves no further step that is certain to lower the loss."
    return f"{told} {tuned.result.status.outcome.value.capitalize()}."


def _verdicts(found: dict[str, np.ndarray]) -> list[str]:
    return [
        report.verdict(found[judge.EACH], values, other)
        for other, values in found.items()
        if other != judge.EACH
    ]


def _sections(
    asked: Tune,
    task: Task,
    tuned: Tuned,
    model: Any,
    found: dict[str, np.ndarray],
    warned: list[str],
) -> list[report.Section]:
    cards = [(str(report.mean_and_error(values)), f"test {task.measure}, {which}")
             for which, values in found.items()]  # fmt: skip
    short = [report.Numbers(cards), report.Text(" ".join(_verdicts(found)))]
    short += [report.Text(f"Warning: {warning}") for warning in warned]
    curve = report.Figure(
        pictures.validation_curve(tuned, task.unit, task.measure),
        "Loss on the held-out rows of the folds. The tuned penalties were chosen by it, so only "
        "the test rows can say whether they are better.",
    )
    return [
        report.Section("In short", short),
        report.Section("Validation", [curve, report.Text(_ended(tuned))]),
        *(report.Section(f"{CAUSES[kind].capitalize()}", _penalties(task, tuned, kind))
          for kind in tuned.penalties),
        report.Section("Coefficients", [_coefficients(task, model)]),
        report.Section("Settings", [
            report.Table(["option", "value", "what it is"], options.rows(asked), code=["option"])
        ]),
    ]  # fmt: skip


def _penalties(task: Task, tuned: Tuned, kind: str) -> list[report.Block]:
    values = np.ravel(tuned.penalties[kind])
    caption = "Features are standardised, and a loss is a mean over rows, so penalties compare."
    return [
        report.Figure(pictures.bars(task.penalties, values, tuned.common), caption),
        report.Table(["", CAUSES[kind]], list(zip(task.penalties, values.tolist(), strict=True))),
    ]


def _coefficients(task: Task, model: Any) -> report.Table:
    weights = np.asarray(model["weights"])
    outputs = task.classes if weights.shape[1] > 1 else ("coefficient",)
    rows = [(name, *row) for name, row in zip(task.names, weights.tolist(), strict=True)]
    return report.Table(["standardised feature", *outputs], rows)
