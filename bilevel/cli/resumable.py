"""A command that keeps the state of its run beside the result, in `OUT.run`, and resumes there."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from bilevel import options
from bilevel.apps.llm.hub import folders
from bilevel.apps.llm.run.session import write_folder
from bilevel.cli.console import plain_console
from bilevel.driver import Outcome, Result

MARK = ".bilevel-align"  # in the folder of a run's state
BEGUN = "options.json"  # there, too: the options with which the run began


class Command(NamedTuple):
    """A command on a model and files (`run.several.Opened`), from its options to its result."""

    asked: Any  # options with `out`
    given: Any  # a session with `opened`
    state: Path
    console: Any

    def begin(self) -> None:
        for told in begin(self.state, self.asked):
            self.console.print(told)

    def ended(self, found: Result) -> None:
        """Nothing, unless Ctrl-C was pressed."""
        if found.status.outcome is Outcome.INTERRUPTED:
            interrupted(self.console, self.state)

    def save(self, found: Result, said: str, write: Callable[[Path], str]) -> bool:
        """The model with the parameters `found.x` and its files; whether the run went well.

        Args:
            said: what to tell at the end.
            write: writes files besides the model; a sentence if one could not be written.
        """
        out, failed = self.asked.out, []
        merged = self.given.opened.merged(found.x)
        write_folder(merged, out, also=lambda part: failed.append(write(part)))
        if found.status.ok:
            folders.remove(self.state)
        for told in filter(None, [said, f"Checkpoint and report.html written to {out}", *failed]):
            self.console.print(told)
        return found.status.ok


def opened(asked: Any, load: Callable[[Any], Any]) -> Command:
    """Read and check everything, and tell what there is to note.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    state = state_folder(asked.out)
    command = Command(asked, load(asked), state, plain_console(soft_wrap=True))
    for note in command.given.opened.notes:
        command.console.print(note)
    return command


def state_folder(out: Path) -> Path:
    """Where the state of the run is kept, checked before minutes are spent.

    Raises:
        ValueError: `out` holds something, or somebody else has filled the folder of the state.
    """
    folders.check_new(out)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to make {out.name} in.")
    state = out.with_name(f"{out.name}.run")
    empty = state.is_dir() and not any(state.iterdir())  # a run that was killed at its start
    if state.exists() and not empty and not (state / MARK).is_file():
        raise ValueError(
            f"{state}, where the state of the run is kept, exists and is none. Move it, or choose "
            "another --out."
        )
    return state


def begin(state: Path, asked: options.Settings) -> list[str]:
    """Make the folder of the state; what to tell of options that changed since the run began."""
    state.mkdir(exist_ok=True)
    (state / MARK).touch()
    return changed(asked, state / BEGUN)


def changed(asked: options.Settings, file: Path) -> list[str]:
    """What differs from the options with which the run in this folder began, in a sentence.

    A run that begins writes them down.
    """
    now = {name: value for name, value, _ in options.rows(asked) if name != "out"}
    try:
        begun = json.loads(file.read_text())
    except FileNotFoundError:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(now, indent=1))
        part.replace(file)
        return []
    told = [f"{name} was {begun[name]}, and is {now[name]}" for name in now.keys() & begun.keys()
            if begun[name] != now[name]]  # fmt: skip
    return [f"Options changed since this run began: {'; '.join(sorted(told))}."] if told else []


def interrupted(console: Any, state: Path) -> NoReturn:
    """End the command as Ctrl-C does, with the way to go on."""
    console.print(f"Interrupted; the same command goes on from {state}.")
    raise KeyboardInterrupt


def json_columns(history: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """A history for a JSON file, which has no NaN."""
    return {name: [None if np.isnan(v) else float(v) for v in column]
            for name, column in history.items()}  # fmt: skip
