"""`bilevel mix`: a checkpoint, sources and a target in, weights and a checkpoint folder out."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel import options, report
from bilevel.apps.llm.mixing import run
from bilevel.apps.llm.mixing.settings import Method, Mix, Weigh
from bilevel.cli import resumable
from bilevel.driver import Result
from bilevel.report import figures

LIGHT = 10  # rows in the report


def mix(asked: Mix) -> bool:
    """Learn the weights, train with them, save, report; whether it went well.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    command = resumable.opened(asked, run.load)
    _, given, state, console = command
    counts = [
        f"{name} {len(rows.tokens)}" for name, rows in zip(given.names, given.sources, strict=True)
    ]
    judged = f"{len(given.judged.tokens)} {'others' if given.apart else 'of these'}"
    console.print(
        f"Rows: {', '.join(counts)}; target {len(given.target.tokens)}, {judged} to judge by."
    )
    command.begin()

    def tell(what):
        def line(step, _, row):
            at = {name: row.get(run.column(name)) for name in given.names}
            weights = "".join(f", {name} {w:.3f}" for name, w in at.items() if w is not None)
            console.print(f"{what}, step {step}: target loss {row[run.TARGET]:.4f}{weights}")

        return line

    def logs(what):
        return [report.TensorBoard(asked.tensorboard / what)] if asked.tensorboard else []

    learned = run.learn(given, state, callbacks=[tell("weights"), *logs("weights")])
    if learned.result:
        command.ended(learned.result)
        if not learned.result.status.ok:
            console.print(f"{learned.result.status} Remove {state} to begin anew.")
            return False
    found = run.train(given, learned.weights, state, callbacks=[tell("model"), *logs("model")])
    command.ended(found)
    said = _verdict(given, found) if found.status.ok else str(found.status)
    return command.save(found, said, lambda part: _write(given, learned, found, part))


def _verdict(given: run.Session, found: Result) -> str:
    """How the target loss of held-out rows changed, row by row."""
    losses = jax.jit(lambda loss, y, rows: loss(y, rows))
    both = given.opened.start, found.x
    before, after = (np.asarray(losses(given.loss, y, given.judged)) for y in both)
    if len(before) < 2:
        return f"Target loss {before.mean():.4f} before, {after.mean():.4f} after."
    scores = [str(report.mean_and_error(values)) for values in (before, after)]
    return f"Target loss {scores[0]} before, {scores[1]} after, on {len(before)} rows."


def _write(given: run.Session, learned: run.Learned, found: Result, out: Path) -> str:
    """The result's files besides the model; a sentence if there is no report."""
    each = (learned.weights[part] for part in given.parts)
    by_row = given.settings.weigh is Weigh.ROW
    values = (some.tolist() if by_row else float(some[0]) for some in each)
    weights = dict(zip(given.settings.sources, values, strict=True))
    if given.settings.method is not Method.TARGET:
        (out / "weights.json").write_text(json.dumps(weights, indent=1) + "\n")
    phases = {"model": found} | ({"weights": learned.result} if learned.result else {})
    kept = {phase: resumable.json_columns(result.history) for phase, result in phases.items()}
    (out / "history.json").write_text(json.dumps(kept, indent=1) + "\n")
    lead = "Weights of the sources of data, and a model trained on rows drawn with them."
    return report.try_write(
        out / "report.html", "Which data help", lambda: _sections(given, learned, found), lead
    )


def _sections(given: run.Session, learned: run.Learned, found: Result) -> list[report.Section]:
    numbers = [
        (f"{found.history[run.TARGET][at]:.4f}", f"target loss, {when}")
        for at, when in ((0, "before"), (-1, "after"))
    ]
    rows = [
        (name, float(learned.weights[part].sum()), len(source.tokens))
        for name, part, source in zip(given.names, given.parts, given.sources, strict=True)
    ]
    blocks: list[report.Block] = []
    if learned.result:
        blocks += [
            report.Figure(
                _picture(given.names, learned.result.history), "Weights of the sources on the way."
            )
        ]
    if given.settings.method is not Method.TARGET:
        blocks += [report.Table(("source", "weight", "rows"), rows, {"weight": ".3f"})]
    if given.settings.weigh is Weigh.ROW:
        heads = ("source", "row", "weight, of 1 for an average row", "prompt", "answer")
        blocks += [
            report.Text(f"The {LIGHT} rows with the least weight:"),
            report.Table(heads, _lightest(given, learned), {heads[2]: ".2g"}),
        ]
    settings = options.rows(given.settings)
    return [
        report.Section("In short", [report.Numbers(numbers), report.Text(_verdict(given, found))]),
        *([report.Section("Weights", blocks)] if blocks else []),
        report.Section("Settings", [report.Table(("option", "value", "what it is"), settings)]),
        *report.of({"trained with the weights": found}, columns=[run.TARGET]),
    ]


def _lightest(given: run.Session, learned: run.Learned) -> list[tuple[Any, ...]]:
    """Source, place in it, weight and text of the rows with the least weights."""
    decode, w = given.opened.tokenizer.decode, learned.weights * len(learned.weights)
    rows = [
        (name, i, weight, one)
        for name, file, part in zip(given.names, given.settings.sources, given.parts, strict=True)
        for i, (weight, one) in enumerate(zip(w[part], given.opened.rows[file], strict=True), 1)
    ]
    return [
        (name, i, float(weight), decode(one.prompt), decode(one.response))
        for name, i, weight, one in sorted(rows, key=lambda row: row[2])[:LIGHT]
    ]


def _picture(names: tuple[str, ...], history: dict[str, np.ndarray]) -> Any:
    with figures.style():
        figure = figures.new_figure(9.6, 3.4)
        axes = figure.subplots()
        for i, name in enumerate(names):
            axes.plot(
                history["step"], history[run.column(name)], color=figures.series_color(i),
                marker=figures.MARKERS[i % len(figures.MARKERS)],
                markevery=max(1, len(history["step"]) // 8), label=name[:30],
            )  # fmt: skip
        axes.set(xlabel="step", ylabel="weight", ylim=(0, None))
        figure.legend(loc="outside upper left", ncols=4)
        return figure
