"""`bilevel unlearn`: a checkpoint and two files in, a checkpoint folder out."""

import json
from pathlib import Path

import numpy as np

from bilevel import options, report
from bilevel.apps.llm.hub import folders
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.run.session import said, write_folder
from bilevel.apps.llm.unlearning import run
from bilevel.apps.llm.unlearning.settings import Unlearn
from bilevel.cli.alignment import BEGUN, MARK, changed, check_new, check_ours
from bilevel.cli.console import plain_console
from bilevel.driver import Outcome, Result

SHOWN = 4  # answers of each kind in the report


def unlearn(asked: Unlearn) -> bool:
    """Forget, save, report; whether it went well.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    out = asked.out
    check_new(out)
    state = out.with_name(f"{out.name}.run")
    check_ours(state)
    console = plain_console(soft_wrap=True)
    given = run.load(asked)
    for note in given.opened.notes:
        console.print(note)
    counts = (
        f"{len(rows.tokens)} answers to {name}" for name, rows in given.answers._asdict().items()
    )
    console.print(f"{', '.join(counts)}; {asked.combine.value}, {asked.steps} steps.")
    before = _answers(given, given.opened.start)
    state.mkdir(exist_ok=True)
    (state / MARK).touch()
    for told in changed(asked, state / BEGUN):
        console.print(told)

    def tell(step, _, row):
        console.print(f"step {step}: forget {row['forget']:.3f}, retain {row['retain']:.3f}")

    logs = [report.TensorBoard(asked.tensorboard)] if asked.tensorboard else []
    found = run.train(given, state, callbacks=[tell, *logs])
    if found.status.outcome is Outcome.INTERRUPTED:
        console.print(f"Interrupted; the same command goes on from {state}.")
        raise KeyboardInterrupt
    after = _answers(given, found.x)
    failed: list[str] = []
    write_folder(
        given.opened.merged(found.x),
        out,
        also=lambda part: failed.append(_write(given, found, before, after, part)),
    )
    if found.status.ok:
        folders.remove(state)
    console.print(f"{found.status}\nCheckpoint and report.html written to {out}")
    for told in filter(None, failed):
        console.print(told)
    return found.status.ok


def _answers(given: run.Session, y) -> list[tuple[str, str, str]]:
    """Kind, prompt and likeliest answer of some rows."""
    opened, found = given.opened, []
    for kind, rows in given.judged._asdict().items():
        asked = model.PromptBatch(*(leaf[:SHOWN] for leaf in rows.prompts))
        pairs = said(opened.merged(y), opened.tokenizer, asked, opened.policy)
        found += [(kind, prompt, answer) for prompt, answer in pairs]
    return found


def _write(given: run.Session, found: Result, before, after, out: Path) -> str:
    """`history.json` and `report.html` into the result; a sentence if there is no report."""
    kept = {name: [None if np.isnan(v) else float(v) for v in column]
            for name, column in found.history.items()}  # fmt: skip
    (out / "history.json").write_text(json.dumps(kept, indent=1) + "\n")
    lead = "Mean probability of the tokens of answers to forget, and of answers to retain."
    return report.try_write(
        out / "report.html", "Unlearning", lambda: _sections(given, found, before, after), lead
    )


def _sections(given: run.Session, found: Result, before, after) -> list[report.Section]:
    columns = ["forget", "retain"]
    numbers = [
        (f"{found.history[name][at]:.3f}", f"{name}, {when}")
        for name in columns
        for at, when in ((0, "before"), (-1, "after"))
    ]
    rows = [(*b, a) for b, (_, _, a) in zip(before, after, strict=True)]
    heads = ("kind", "prompt", "before", "after")
    about = "The likeliest answers, token by token; those to retain are held out where there are."
    settings = options.rows(given.settings)
    return [
        report.Section("In short", [report.Numbers(numbers), report.Text(str(found.status))]),
        report.Section("Answers before and after", [report.Table(heads, rows), report.Text(about)]),
        report.Section("Settings", [report.Table(("option", "value", "what it is"), settings)]),
        *report.of({given.settings.combine.value: found}, columns=columns),
    ]
