"""Options of the commands that are no application of their own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


@dataclass(frozen=True, kw_only=True)
class Demo(options.Settings):
    """Find the wrong labels in a training set, with every method, and write a report."""

    out: Path = Path("bilevel-demo.html")
    """Where the report goes."""
    wrong: Annotated[float, Bounds(least=0, most=1)] = 0.5
    """Share of wrong labels."""
    steps: Annotated[int, Bounds(least=1)] = 4000
    """Steps of SOBA; the other methods may spend as many oracle calls."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides split, labels and draws."""


@dataclass(frozen=True, kw_only=True)
class Methods(options.Settings):
    """List the methods, or show one: what it handles, costs and holds, and its paper."""

    name: Annotated[str | None, Argument()] = None
    """A method, such as SOBA; all when absent."""
    bibtex: bool = False
    """Print the BibTeX entry of its paper."""


@dataclass(frozen=True, kw_only=True)
class Textbook(options.Settings):
    """Solve small problems with bl.solve and no method; judge each answer independently."""

    problems: Path
    """JSON file of problems, as bilevel.problems.textbook.load reads it."""
    out: Path = Path("bilevel-textbook")
    """Folder for the table and the figure."""
    only: tuple[str, ...] = ()
    """Only problems with this in their name; repeatable."""
    cache: Path | None = None
    """Folder where compiled programs are kept for the next run."""


@dataclass(frozen=True, kw_only=True)
class Chat(options.Settings):
    """Talk to a language model; lines come from standard input."""

    model: Path
    """Hugging Face folder, GGUF file, or name of a model on the hub."""
    prompt: str | None = None
    """Answer this, and end."""
    new: Annotated[int, Bounds(least=1)] = 128
    """Longest answer, in tokens."""
    temperature: Annotated[float, Bounds(least=0)] = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: Annotated[float | None, Bounds(above=0)] = 0.9
    """Nucleus sampling: draw among the likeliest tokens of this share."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides the draws."""
