"""`bilevel unlearn`: a checkpoint and two files in, a checkpoint folder out."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bilevel import options, report
from bilevel.apps.llm.unlearning import run, verdict
from bilevel.apps.llm.unlearning.settings import Unlearn
from bilevel.apps.llm.unlearning.verdict import Memory
from bilevel.cli import resumable
from bilevel.driver import Result

HARDLY = 0.01  # a smaller probability of a token, and there is little to forget
SHOWN = 4  # answers of each kind in the report
ABOUT = (
    f"Of at most {run.JUDGED} questions of each kind. Probability: of a token of the right answer; "
    "of general questions, of the right answer among wrong ones. ROUGE-L: share of the words of "
    "the right answer that the likeliest answer holds in their order. Truth: 1 where the right "
    "answer is far likelier than wrong ones, 0 where it is not likelier; the wrong ones are right "
    "answers to the most similar questions of the same file. Model utility: harmonic mean of these "
    "over what is to stay known. Forget quality: above 0.05 a test cannot tell the model from one "
    "that was never told. docs/apps/unlearning.md says more."
)
ANSWERS = "The likeliest answers, token by token; those to retain are held out where there are."


def unlearn(asked: Unlearn) -> bool:
    """Forget, save, report; whether it went well.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    command = resumable.opened(asked, run.load)
    _, given, state, console = command
    counts = (
        f"{len(rows.tokens)} answers to {name}" for name, rows in given.answers._asdict().items()
    )
    console.print(f"{', '.join(counts)}; {asked.combine.value}, {asked.steps} steps.")
    memories = {"before": run.remembered(given, given.opened.start)}
    known = verdict.numbers(memories["before"])["forget: probability"]
    if known < HARDLY:
        console.print(f"A token to forget has probability {known:.2g}: the model hardly knows it.")
    retrained = run.of_retrained(given)
    command.begin()

    def tell(step, _, row):
        console.print(
            f"step {step}: probability of tokens to forget {row['forget']:.3f}, "
            f"to retain {row['retain']:.3f}"
        )

    logs = [report.TensorBoard(asked.tensorboard)] if asked.tensorboard else []
    found = run.train(given, state, callbacks=[tell, *logs])
    command.ended(found)
    memories["after"] = run.remembered(given, found.x)
    memories |= {"never told": retrained} if retrained else {}
    return command.save(found, str(found.status), lambda part: _write(given, found, memories, part))


def _write(given: run.Session, found: Result, memories: Mapping[str, Memory], out: Path) -> str:
    """`history.json`, `memory.json` and `report.html`; a sentence if there is no report."""
    kept = resumable.json_columns(found.history)
    (out / "history.json").write_text(json.dumps(kept, indent=1) + "\n")
    never = memories.get("never told")
    told = {name: verdict.numbers(memory, never) for name, memory in memories.items()}
    known = {name: {what: None if np.isnan(v) else v for what, v in numbers.items()}
             for name, numbers in told.items()}  # fmt: skip
    (out / "memory.json").write_text(json.dumps(known, indent=1) + "\n")
    lead = "Mean probability of the tokens of answers to forget, and of answers to retain."
    return report.try_write(
        out / "report.html", "Unlearning", lambda: _sections(given, found, memories, told), lead
    )


def _sections(given: run.Session, found: Result, memories, told) -> list[report.Section]:
    columns = ["forget", "retain"]
    numbers = [
        (f"{found.history[name][at]:.3f}", f"{name}, {when}")
        for name in columns
        for at, when in ((0, "before"), (-1, "after"))
    ]
    known = [(name, *(one.get(name) for one in told.values())) for name in told["after"]]
    heads = ("kind", "prompt", *memories)
    settings = options.rows(given.settings)
    return [
        report.Section("In short", [report.Numbers(numbers), report.Text(str(found.status))]),
        report.Section(
            "What is remembered",
            [report.Table(("", *memories), known, dict.fromkeys(memories, ".3f")),
             report.Text(ABOUT)],
        ),
        report.Section(
            "Answers before and after",
            [report.Table(heads, _answers(given, memories)), report.Text(ANSWERS)],
        ),
        report.Section("Settings", [report.Table(("option", "value", "what it is"), settings)]),
        *report.of({given.settings.combine.value: found}, columns=columns),
    ]  # fmt: skip


def _answers(given: run.Session, memories: Mapping[str, Memory]) -> list[tuple[str, ...]]:
    """Kind, prompt and likeliest answers of some questions."""
    decode, found = given.opened.tokenizer.decode, []
    for kind in (verdict.FORGET, verdict.RETAIN):
        prompts = given.questions[kind].right.prompts
        for i, (tokens, mask) in enumerate(zip(*map(np.asarray, prompts), strict=True)):
            if i < SHOWN:
                said = (memory[kind].said[i] for memory in memories.values())
                found.append((kind, decode(tokens[mask]), *said))
    return found
