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
    for_: str | None = None
    """Only methods that handle this problem, module:name."""
    bibtex: bool = False
    """Print the BibTeX entry of its paper."""
    json: bool = False
    """Print JSON for machines."""


@dataclass(frozen=True, kw_only=True)
class _Problem(options.Settings):
    """Problem."""

    problem: Annotated[str, Argument()]
    """module:name of a bl.Problem of yours (x0, y0, data beside it), or of a case with these."""
    float64: bool = False
    """Compute in double precision."""
    json: bool = False
    """Print JSON for machines on standard output, all else on standard error."""


@dataclass(frozen=True, kw_only=True)
class Run(_Problem):
    """Solve a problem of a Python module of yours."""

    method: str | None = None
    """SOBA, with steps from bl.tune, or with your own: 'SOBA(x_update=0.1)'; chosen when absent."""
    steps: Annotated[int, Bounds(least=1)] = 1000
    """Updates of x."""
    seeds: Annotated[int, Bounds(least=1, most=1000)] = 1
    """Run with the seeds 0, 1, ... up to this many."""
    checkpoint: Path | None = None
    """Folder that holds the state; a run that was stopped goes on from it."""
    save: Path | None = None
    """Write x and y into this .npz file."""
    report: Path | None = None
    """Write an HTML report."""


@dataclass(frozen=True, kw_only=True)
class Compare(_Problem):
    """Compare methods on a problem, each with the best of several step sizes."""

    methods: str | None = None
    """Names with commas, such as SOBA,TTSA,F2SA; up to six that fit the problem when absent."""
    steps: Annotated[int, Bounds(least=1)] = 1000
    """Updates of x of each method, after the race for steps."""
    seconds: Annotated[float, Bounds(above=0)] = 60.0
    """Time for the race."""
    executor: str | None = None
    """module:name of an executor of concurrent.futures, or of a function that returns one; it runs
    the methods at once."""
    report: Path | None = None
    """Write an HTML report."""


@dataclass(frozen=True, kw_only=True)
class Probe(_Problem):
    """Measure curvature and convexity of a problem at its start, and the steps that follow."""


@dataclass(frozen=True, kw_only=True)
class Textbook(options.Settings):
    """Solve small problems with bl.solve and no method; judge each answer independently."""

    problems: Path
    """JSON file of problems, as bilevel.problems.textbook.load reads it."""
    out: Path = Path("bilevel-textbook")
    """Folder for the table and the figure."""
    only: tuple[str, ...] = ()
    """Only problems with this in their name; repeatable."""
    executor: str | None = None
    """module:name of an executor of concurrent.futures, or of a function that returns one; it runs
    the problems at once."""
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
