"""Options of commands; nothing here imports an array library."""

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
    clean: Annotated[int, Bounds(least=10, most=300)] = 100
    """Clean samples."""
    seeds: Annotated[int, Bounds(least=2)] = 6
    """Splits to measure the gain on."""
    steps: Annotated[int, Bounds(least=1)] = 1000
    """Steps of SOBA; the other methods may spend as many oracle calls."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides split, labels and draws."""


@dataclass(frozen=True, kw_only=True)
class Clean(options.Settings):
    """Find the wrong labels of your training data with the help of a few clean samples."""

    data: Annotated[Path, Argument()]
    """CSV or parquet table, .npz of inputs and labels, or a folder with a folder for each class."""
    clean: Path
    """Samples whose labels are right, of the same kind; some of every class."""
    test: Path | None = None
    """More samples with right labels, to measure the accuracy."""
    out: Path = Path("bilevel-clean")
    """New folder for weights.csv, suspects.csv and report.html."""
    target: str = "y"
    """Column of the labels in a table."""
    model: str = "linear"
    """linear, mlp, convnet, or module:function of a file in this folder, called as function(key,
    inputs, classes) -> (scores, params); scores(params, inputs) has a column for each class."""
    steps: Annotated[int, Bounds(least=1)] = 1000
    """Updates of the weights."""
    batch: Annotated[int | None, Bounds(least=1)] = None
    """Training samples a step; all (linear) or at most 128 when absent."""
    rate: Annotated[float, Bounds(above=0)] = 1e-3
    """Step size of the classifier (Adam), if it is not linear."""
    decay: Annotated[float, Bounds(above=0)] = 1e-3
    """Weight decay of the classifier."""
    self_paced: Annotated[float, Bounds(least=0)] = 2.0
    """How far the classifier's own opinion counts beside the clean samples; 0: these alone."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides the draws."""


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
    """Hugging Face checkpoint folder."""
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
