"""`bilevel reweight`: weights of the sources, and models trained with them."""

import json
import sys
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from bilevel import options, report
from bilevel.apps.reweight.online import doge
from bilevel.apps.reweight.settings import Reweight
from bilevel.apps.reweight.single_loop import method, scalebio, train
from bilevel.apps.reweight.task import Task, read
from bilevel.driver import Outcome, Result
from bilevel.global_search import double_precision
from bilevel.losses import losses_of
from bilevel.report import figures, series_color

OURS, VALIDATION = "ScaleBiO", "trusted rows only"


def run(asked: Reweight) -> None:
    """Read, learn the weights, train with each, write the report.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything is learned.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    out = report.check_writable(asked.out)
    task = read(asked)
    with double_precision():
        weights, result = _weights(task, asked)
        if result.status.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        found = _test_losses(task, weights)
    scores = {name: report.mean_and_error(values) for name, values in found.items()}
    verdicts = [report.verdict(found[OURS], values, name)
                for name, values in found.items() if name != OURS]  # fmt: skip
    sections = _sections(asked, task, weights, scores, verdicts, result)
    n, m = len(task.validation.target), len(task.test.target)
    lead = (
        f"{len(task.names)} sources of {len(task.sources.source)} training rows, weighted by "
        f"{n} trusted rows; {m} other trusted rows give the test scores."
    )
    report.write(out, f"Sources for {asked.target}", sections, lead)
    if asked.json:
        told = {
            "measure": task.measure,
            "weights": {which: dict(zip(task.names, w.tolist(), strict=True))
                        for which, w in weights.items()},
            "test": {which: score._asdict() for which, score in scores.items()},
        }  # fmt: skip
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    console.print(lead, markup=False)
    width = max(map(len, task.names))
    for i, name in enumerate(task.names):
        told = "".join(f"   {w[i]:.3f} {which}" for which, w in weights.items())
        console.print(f"  {name:{width}}{told}", markup=False)
    for which, score in scores.items():
        console.print(f"  test {task.measure}  {score!s:18} {which}", markup=False)
    console.print("\n".join(verdicts), markup=False)
    console.print(f"Report written to {out}", markup=False)


def _weights(
    task: Task, asked: Reweight
) -> tuple[dict[str, Float[np.ndarray, " sources"]], Result]:
    common: dict[str, Any] = {
        "outputs": task.outputs,
        "batch_size": asked.batch_size,
        "steps": asked.steps,
        "seed": asked.seed,
    }
    by = method(asked.penalty, asked.step_size)
    ours = scalebio(task.sources, task.validation, task.loss, by=by, **common)
    online = doge(task.sources, task.validation, task.loss, **common)
    k = task.sources.number
    weights = {OURS: ours.weights, "DoGE": np.asarray(online.mean), "uniform": np.full(k, 1 / k)}
    return weights, ours.result


def _test_losses(
    task: Task, weights: dict[str, Float[np.ndarray, " sources"]]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Of models trained anew on all rows under each weighting, and on the trusted rows alone."""
    models = {which: train(task.sources, w, task.loss, outputs=task.outputs)
              for which, w in weights.items()}  # fmt: skip
    alone = task.sources._replace(
        rows=task.validation, source=np.zeros(len(task.validation[1]), int)
    )
    models[VALIDATION] = train(alone, [1.0], task.loss, outputs=task.outputs)
    return {which: np.asarray(losses_of(task.loss, y, task.test)) * task.unit
            for which, y in models.items()}  # fmt: skip


def _sections(
    asked: Reweight,
    task: Task,
    weights: dict[str, Float[np.ndarray, " sources"]],
    scores: dict[str, report.Score],
    verdicts: list[str],
    result: Result,
) -> list[report.Section]:
    cards = [(str(score), f"test {task.measure}, {which}") for which, score in scores.items()]
    told = report.Text(f"{OURS} beside the others: {' '.join(verdicts)}")
    rows = [(name, *(float(w[i]) for w in weights.values())) for i, name in enumerate(task.names)]
    counts = np.bincount(task.sources.source)
    rows = [(*row, int(count)) for row, count in zip(rows, counts, strict=True)]
    table = report.Table(["source", *weights, "rows"], rows, dict.fromkeys(weights, ".3f"))
    return [
        report.Section("In short", [report.Numbers(cards), told]),
        report.Section("Weights", [report.Figure(_bars(task.names, weights)), table]),
        report.Section("Run", [report.Text(str(result.status))]),
        report.Section("Settings", [
            report.Table(["option", "value", "what it is"], options.rows(asked), code=["option"])
        ]),
    ]  # fmt: skip


def _bars(names: tuple[str, ...], weights: dict[str, Float[np.ndarray, " sources"]]) -> Any:
    with figures.style():
        figure = figures.new_figure(9.6, 1.1 + 0.45 * len(names))
        axes = figure.subplots()
        for j, (which, w) in enumerate(weights.items()):
            places = np.arange(len(names))[::-1] + 0.25 * (1 - j)
            axes.barh(places, w, height=0.22, color=series_color(j), label=which)
        axes.set_yticks(np.arange(len(names))[::-1], [name[:30] for name in names])
        axes.set_xlabel("weight")
        axes.grid(visible=False, axis="y")
        axes.legend()
        return figure
