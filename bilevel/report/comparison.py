"""Sections for one run or several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bilevel.driver import Result
from bilevel.report.blocks import Figure, Section, Table, Text
from bilevel.report.clock import Clock, clock
from bilevel.report.environment import environment
from bilevel.report.figures import Run, curves

# What every history holds; the other columns are the user's metrics.
OWN = ("step", "seconds", "gradients", "upper", "hypergrad_norm", "lower_grad_norm", "penalty")


def of(
    results: Mapping[str, Result],
    *,
    columns: Sequence[str] | None = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    measures: Mapping[str, Mapping[str, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Section]:
    """Results as sections: a table, learning curves, how each run ended, settings, machine.

    Args:
        results: runs by name; one is enough.
        columns: columns of the histories to plot; if `None`, the metrics, or else the scalars that
            the methods report.
        lines: reference values of a plotted column, by name; lines in its figure and rows in the
            table.
        measures: further columns of the table: for each heading, a number per run.
        settings: for each run, the method or anything whose `repr` shows the settings.
    """
    columns = list(columns) if columns is not None else _columns(results)
    clocks = {name: clock(result.history) for name, result in results.items()}
    sections = [
        Section("Results", [_table(results, clocks, columns, lines or {}, measures or {})]),
        Section("Learning curves", [_curves(results, clocks, columns, lines or {})]),
        Section("How the runs ended", [_endings(results)]),
    ]
    if settings:
        rows = [(name, repr(setting)) for name, setting in settings.items()]
        table = Table(("run", "setting"), rows, colors=_colors(results), code=("setting",))
        sections.append(Section("Settings", [table]))
    machine = " · ".join(f"{name} {told}" for name, told in environment().items())
    return [*sections, Section("Versions and machine", [Text(machine)])]


def _columns(results: Mapping[str, Result]) -> list[str]:
    names = list(dict.fromkeys(name for r in results.values() for name in r.history))
    metrics = [name for name in names if name not in OWN]
    return metrics or [name for name in ("upper", "hypergrad_norm") if name in names]


def _colors(results: Mapping[str, Result]) -> dict[str, str]:
    return {name: f"var(--series-{i % 8 + 1})" for i, name in enumerate(results)}


def _last(result: Result, column: str) -> float:
    values = result.history.get(column, np.zeros(0))
    return float(values[-1]) if len(values) else float("nan")


def _table(
    results: Mapping[str, Result],
    clocks: Mapping[str, Clock],
    columns: Sequence[str],
    lines: Mapping[str, Mapping[str, float]],
    measures: Mapping[str, Mapping[str, float]],
) -> Table:
    """One row per run, then one row per reference value."""
    counted = ("oracle calls",) if _counted(results) else ()
    costs = ("steps", *counted, "running [s]", "compiling [s]", "steps/s")
    heads = ("run", *columns, *measures, *costs, "ended")
    rows = []
    for name, result in results.items():
        running = float(clocks[name].running[-1]) if len(clocks[name].running) else float("nan")
        rows.append(
            (
                name,
                *(_last(result, column) for column in columns),
                *(float(numbers.get(name, np.nan)) for numbers in measures.values()),
                result.stats.steps,
                *(_last(result, "gradients") for _ in counted),
                running,
                clocks[name].compiling,
                result.stats.steps / running if running > 0 else float("nan"),
                result.status.outcome.value,
            )
        )
    references = list(dict.fromkeys(name for values in lines.values() for name in values))
    for name in references:
        values = [lines.get(column, {}).get(name) for column in columns]
        rows.append((name, *values, *[None] * (len(heads) - 1 - len(columns))))
    formats = {"oracle calls": ",.0f", "running [s]": ".1f", "compiling [s]": ".1f"}
    formats |= {"steps/s": ",.0f"} | dict.fromkeys((*columns, *measures), "#.3g")
    return Table(heads, rows, formats, _colors(results), aside=references)


class Abscissa(NamedTuple):
    """The x-axis of learning curves, next to seconds."""

    column: str  # of the history
    label: str
    told: str  # below the figure


CALLS = Abscissa(
    "gradients",
    "oracle calls (gradients)",
    "gradient evaluations, a Hessian or cross product counted as two",
)
STEPS = Abscissa("step", "steps", "updates of the upper variable")


def _curves(
    results: Mapping[str, Result],
    clocks: Mapping[str, Clock],
    columns: Sequence[str],
    lines: Mapping[str, Mapping[str, float]],
) -> Figure | Text:
    right = CALLS if _counted(results) else STEPS
    runs = {
        name: Run(
            result.history,
            (clocks[name].running, result.history[right.column]),
            broke_off=not result.status.ok,
        )
        for name, result in results.items()
        if len(result.history.get("step", []))
    }
    if not runs or not columns:
        return Text("No history was kept.")
    broken = any(run.broke_off for run in runs.values())
    figure = curves(runs, columns, ("seconds of running", right.label), lines)
    told = (
        "First against wall time without compilation, which the table shows apart, then against "
        f"{right.told}. The start, before the first step, may lie outside."
    )
    return Figure(figure, told + " A cross marks a run that broke off." * broken)


def _counted(results: Mapping[str, Result]) -> bool:
    """Whether oracle calls are known; they are not if the user supplies the hypergradient."""
    return any(_last(result, "gradients") > 0 for result in results.values())


def _endings(results: Mapping[str, Result]) -> Table:
    rows = []
    for name, result in results.items():
        told = str(result.certificate) if result.certificate is not None else None
        notes = " ".join(f"Note: {note}." for note in result.stats.notes)
        rows.append((name, f"{result.status} {notes}".strip(), told))
    return Table(("run", "status", "certificate"), rows, colors=_colors(results))
