"""The options of `bilevel evaluate`: nothing here imports an array library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Bounds


@dataclass(frozen=True, kw_only=True)
class Evaluate(options.Settings):
    """Score a language model on tasks of lm-eval that are files of yours.

    Nothing is downloaded. Python functions that a task file names are run.
    """

    model: Path
    """Hugging Face folder, GGUF file, or name of a model on the hub."""
    tasks: Path
    """Folder of task files (YAML) of lm-eval."""
    task: tuple[str, ...] = ()
    """Name of a task in the folder; repeatable. All of them when absent."""
    shots: Annotated[int | None, Bounds(least=0)] = None
    """Worked examples before each question; what the task says when absent."""
    limit: Annotated[int | None, Bounds(least=1)] = None
    """Questions of each task, the first ones; all when absent."""
    batch: Annotated[int, Bounds(least=1)] = 8
    """Texts at a time."""
    out: Path | None = None
    """New JSON file for the scores."""
