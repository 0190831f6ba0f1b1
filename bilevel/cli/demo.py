"""`bilevel demo`: a training set with wrong labels, cleaned by every method."""

from collections.abc import Iterable, Mapping

import numpy as np
from rich.table import Table
from rich.text import Text

from bilevel import report
from bilevel.apps import cleaning
from bilevel.cli import pictures, tables
from bilevel.cli.console import plain_console
from bilevel.cli.options import Demo
from bilevel.driver import Outcome, Result
from bilevel.methods import AbstractMethod


def run(options: Demo) -> None:
    """Load, clean with each method, show a table, write the report.

    Raises:
        ValueError, ImportError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; the report of what was done until then is written.
    """
    out = report.check_writable(options.out)
    console = plain_console()
    task = cleaning.digits(options.wrong, options.seed, clean=options.clean)
    total, clean = len(task.train.labels), len(task.validation.labels)
    found = f"{total} handwritten digits, {task.wrong.sum()} with a wrong label; {clean} clean ones"
    console.print(f"{found} to judge by.\n")
    counts = sorted({30, options.clean, 300})
    measured = {n: _measured(options, n) for n in counts}
    for n, outcomes in measured.items():
        console.print(f"{n} clean samples: {_verdict(outcomes)}", soft_wrap=True)
    references = cleaning.references(task)
    settings = cleaning.settings()
    results = _solve(task, settings, cleaning.equal_cost(options.steps), options.seed)
    found = {name: cleaning.detection(r.x, task.wrong) for name, r in results.items()}
    console.print(_table(results, found, references))
    title = "Finding wrong labels by bilevel optimization"
    lead = (
        f"{task.wrong.sum()} of {total} training labels are wrong, and {clean} clean samples tell "
        f"which. {_verdict(measured[options.clean])}"
    )
    partial = _partial(results, settings)

    def sections() -> list[report.Section]:
        return [
            *_sections(task, results, found, measured, options.clean),
            *report.of(
                results,
                lines={"test accuracy": references},
                measures={"F1": {name: d.f1 for name, d in found.items()}},
                settings=settings,
            ),
        ]

    failed = report.try_write(out, title, sections, f"{partial} {lead}" if partial else lead)
    console.print(failed or f"Report written to {out}", soft_wrap=True)
    if partial:
        console.print(partial, soft_wrap=True)
        raise KeyboardInterrupt


def _measured(options: Demo, clean: int) -> cleaning.Outcomes:
    """SOBA on several splits and labels."""
    seeds = range(options.seed, options.seed + options.seeds)
    tasks = [cleaning.digits(options.wrong, seed, clean=clean) for seed in seeds]
    return cleaning.over_seeds(tasks, steps=options.steps)


def _verdict(outcomes: cleaning.Outcomes) -> str:
    """Whether cleaning pays, in a sentence that holds whatever was measured."""
    gain, seeds = outcomes.gain, len(outcomes.f1)
    rival = "the clean samples alone" if outcomes.clean_is_better else "all labels as they are"
    told = (
        f"Cleaning changes the test accuracy by {gain.value:+.3f} ± {gain.error:.3f} over {rival} "
        f"(mean of {seeds} seeds and its standard error)"
    )
    equal = "no gain beyond three of them, so both are about equal"
    return f"{told}: {'it pays' if outcomes.pays else equal}."


def _solve(
    task: cleaning.Task, settings: Mapping[str, AbstractMethod], steps: Mapping[str, int], seed: int
) -> dict[str, Result]:
    """Each method in turn; Ctrl-C ends the run it meets and leaves out those to come."""
    results = {}
    for name, method in settings.items():
        results[name] = cleaning.clean(task, method, steps=steps[name], seed=seed)
        if results[name].status.outcome is Outcome.INTERRUPTED:
            break
    return results


def _partial(results: Mapping[str, Result], settings: Mapping[str, AbstractMethod]) -> str | None:
    """What a report lacks after Ctrl-C, in a sentence."""
    *_, (name, last) = results.items()
    if last.status.outcome is not Outcome.INTERRUPTED:
        return None
    missing = [other for other in settings if other not in results]
    rest = f", and {', '.join(missing)} did not run" if missing else ""
    return (
        f"This report is partial: {name} was stopped from the keyboard after step "
        f"{last.history['step'][-1]:.0f}{rest}."
    )


def _accuracy(result: Result) -> float:
    return float(result.history["test accuracy"][-1])


def _table(
    results: Mapping[str, Result],
    found: Mapping[str, cleaning.Detection],
    references: Mapping[str, float],
) -> Table:
    """The outcome for the terminal: the methods, then what they are to be compared with."""
    table = tables.new_table(
        "Test accuracy after cleaning",
        caption="F1 of the wrong labels found; seconds without compiling. Below, the same "
        "classifier on fixed data; the oracle knows the wrong labels.",
    )
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "F1", "seconds", "compiling", "steps/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for name, result in results.items():
        time = report.clock(result.history)
        running = float(time.running[-1])
        pace = f"{result.stats.steps / running:,.0f}" if running > 0 else "–"
        row = (f"{_accuracy(result):.3f}", _number(found[name].f1, ".2f"), f"{running:.1f}")
        ended = result.status.outcome.value
        table.add_row(Text(name, "bold"), *row, _number(time.compiling, ".1f"), pace, ended)
    table.add_section()
    for name, value in references.items():
        table.add_row(Text(name, "dim"), Text(f"{value:.3f}", "dim"))
    return table


def _number(value: float, spec: str) -> str:
    return format(value, spec) if np.isfinite(value) else "–"


def _range(values: Iterable[float], spec: str) -> str:
    """Smallest to largest, or one number where they look the same."""
    told = sorted({_number(value, spec) for value in values})
    return told[0] if len(told) == 1 else f"{told[0]}–{told[-1]}"


def _count(n: int, total: int) -> str:
    return "All labels are" if n == total else f"{n} of the labels are"


def _sections(
    task: cleaning.Task,
    results: Mapping[str, Result],
    found: Mapping[str, cleaning.Detection],
    measured: Mapping[int, cleaning.Outcomes],
    clean: int,
) -> list[report.Section]:
    """What only this application has to tell."""
    mean, now = cleaning.mean, measured[clean]
    rival = f"the {clean} clean samples" if now.clean_is_better else "all labels as they are"
    pays = "cleaning pays" if now.pays else "about equal"
    numbers = report.Numbers(
        [
            (f"{now.gain.value:+.3f} ± {now.gain.error:.3f}", f"accuracy over {rival}: {pays}"),
            (str(mean(now.accuracy)), "test accuracy after cleaning"),
            (str(mean(now.f1)), "F1 of the wrong labels found"),
        ]
    )
    errors = report.Text(
        f"Means of {len(now.f1)} splits of the digits; after ± stands the standard error."
    )
    rows = [
        (
            f"{n} clean samples",
            *(
                str(mean(v)).replace(" ", "\u00a0")
                for v in (o.all_data, o.clean_only, o.accuracy, o.f1)
            ),
            "yes" if o.pays else "no",
        )
        for n, o in measured.items()
    ]
    heads = ("", "all labels", "clean only", "cleaned", "F1 of wrong labels", "pays")
    counts = report.Text(
        "The more clean samples there are, the less cleaning adds to a classifier trained on them "
        "alone; it still finds the wrong labels. It pays where the gain over the better of the two "
        "baselines is more than three standard errors, seed by seed."
    )
    about = report.Text(
        "Every training sample has a weight. The lower problem trains a linear classifier on the "
        "weighted samples; the upper problem chooses the weights that give a small loss on the "
        f"{len(task.validation.labels)} clean samples and on the samples that are kept. Then the "
        "classifier is trained again on the samples kept and the clean ones. The figures below are "
        "those of one seed, of the classifier before that; all methods may spend the same number "
        f"of oracle calls. The {len(task.test.labels)} test digits are used for reporting only."
    )
    learned = {name: np.asarray(cleaning.weights(r.x)) for name, r in results.items()}
    blocks = [
        report.Figure(
            pictures.histograms(learned, task.wrong),
            "Learned weights of the samples with a right label (upwards) and with a wrong one "
            "(downwards). Left of the dashed line a sample is detected as wrong.",
        )
    ]
    first = next(iter(learned))
    worst = np.argsort(learned[first], kind="stable")[:12]
    blocks.append(
        report.Figure(
            pictures.thumbnails(task.train, worst),
            f"The {len(worst)} samples to which {first} gives the smallest weights, with the "
            f"labels they came with. {_count(int(task.wrong[worst].sum()), len(worst))} wrong.",
        )
    )
    return [
        report.Section("In short", [numbers, errors]),
        report.Section("When cleaning pays", [report.Table(heads, rows), counts, about]),
        report.Section("Weights", blocks),
    ]
