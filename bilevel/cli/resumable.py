"""A command that keeps the state of its run beside the result, in `OUT.run`, and resumes there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bilevel import options
from bilevel.apps.llm.hub import folders

MARK = ".bilevel-align"  # in the folder of a run's state
BEGUN = "options.json"  # there, too: the options with which the run began


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
