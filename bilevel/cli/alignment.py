"""`bilevel align`, `bilevel sft`: a checkpoint and feedback in, a checkpoint folder out."""

import json
import shutil
from pathlib import Path

import jax

from bilevel import options, report
from bilevel.apps.llm.hub import folders
from bilevel.apps.llm.run import session
from bilevel.apps.llm.run.monitor import PROGRESS_COLUMNS
from bilevel.apps.llm.run.session import Session, TrainResult
from bilevel.apps.llm.run.settings import SFT, Align
from bilevel.cli import resumable
from bilevel.cli.console import plain_console
from bilevel.driver import Outcome, Result


def sft(asked: SFT) -> bool:
    """`align` with the method of the same name."""
    return align(asked.as_align())


def align(asked: Align) -> bool:
    """Align, save, report; whether it went well.

    The state of an unfinished run is kept beside the result, in `OUT.run`; the same command goes on
    from it.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    out = asked.out
    state = resumable.state_folder(out)
    first = jax.process_index() == 0  # where several processes run this, it alone tells and writes
    if first:
        shutil.rmtree(folders.part_of(state), ignore_errors=True)  # of a call that was killed
    console = plain_console(soft_wrap=True, quiet=not first)
    given = session.load(asked.model, asked.demos, asked.prefs, asked)
    for told in _told(given):
        console.print(told)
    before = session.answers(given, given.task.reference)
    if first:
        for told in resumable.begin(state, asked):
            console.print(told)
    logs = [report.TensorBoard(asked.tensorboard)] if first and asked.tensorboard else []
    found = session.train(given, state, told=console.print, callbacks=logs)
    if found.status.outcome is Outcome.INTERRUPTED:
        resumable.interrupted(console, state)
    after = session.answers(given, found.policy)
    # With the report in it from the start, so that what stands at `out` is whole.
    failed: list[str] = []
    session.save(
        given, found, out, also=lambda part: failed.append(write(given, found, before, after, part))
    )
    if first and found.status.ok:
        folders.remove(state)
    for result in found.aligned.results:
        for note in result.stats.notes:
            console.print(note)
    console.print(f"{found.status}\n{found.speed:,.0f} tokens/s.")
    both = f"Checkpoint and report.html written to {out}"
    told = " ".join(part for part in failed if part)
    console.print(f"Checkpoint written to {out}. {told}" if told else both)
    return found.status.ok


def _told(given: Session) -> list[str]:
    task, config = given.task, given.checkpoint.config
    counts = {
        "demonstrations": task.demonstrations,
        "preferences": task.preferences and task.preferences.chosen,
    }
    kinds = [f"{len(rows.tokens)} {name}" for name, rows in counts.items() if rows is not None]
    held = 0 if given.held is None else len(given.held.chosen.tokens)
    shown = 0 if given.shown is None else len(given.shown.tokens)
    last = f", then {given.settings.finish} last ones" if given.settings.finish else ""
    judged = f"{held} pairs and {shown} demonstrations held out to judge by"
    return [
        *given.notes,
        f"{config.family.value}, {config.layers} layers; {', '.join(kinds)}; {judged}.",
        f"{given.settings.method.value}, {given.settings.steps} steps{last}.",
    ]


def write(given: Session, found: TrainResult, before, after, out: Path) -> str:
    """`history.json` and `report.html` into the result; a sentence if there is no report."""
    kept = resumable.json_columns(found.history)
    (out / "history.json").write_text(json.dumps(kept, indent=1) + "\n")
    title = f"Aligned by {given.settings.method.value}"
    lead = "Rewards and divergences are those of responses drawn from the policy at that step."
    return report.try_write(
        out / "report.html", title, lambda: _sections(given, found, before, after), lead
    )


def _sections(given: Session, found: TrainResult, before, after) -> list[report.Section]:
    columns = [name for name in PROGRESS_COLUMNS if name in found.history]
    results = {given.settings.method.value: _whole(found)}
    settings = options.rows(given.settings)
    rows = [(p, b or "(nothing)", a or "(nothing)")
            for (p, b), (_, a) in zip(before, after, strict=True)]  # fmt: skip
    numbers = [(f"{found.history[name][-1]:.3g}", f"{name}, at the end") for name in columns]
    return [
        report.Section("In short", [
            report.Numbers([*numbers, (f"{found.speed:,.0f}", "tokens a second")]),
            report.Text(str(found.status)),
        ]),
        report.Section("Answers before and after", [
            report.Table(("prompt", "before", "after"), rows),
            report.Text("The likeliest answers, token by token; held-out prompts where there are."),
        ]),
        report.Section("Settings", [report.Table(("option", "value", "what it is"), settings)]),
        *report.of(results, columns=columns),
    ]  # fmt: skip


def _whole(found: TrainResult) -> Result:
    """The result of the last phase, with the history and the steps of all."""
    results = found.aligned.results
    stats = results[-1].stats._replace(steps=sum(result.stats.steps for result in results))
    return results[-1]._replace(status=found.status, history=found.history, stats=stats)
