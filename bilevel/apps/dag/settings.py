"""Options of `bilevel dag`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


@dataclass(frozen=True, kw_only=True)
class Dag(options.Settings):
    """Find a directed acyclic graph of the columns of a table, and write a report."""

    data: Annotated[Path, Argument()]
    """CSV or parquet table of numbers, a row a sample."""
    columns: tuple[str, ...] = ()
    """Only these columns; repeatable."""
    threshold: Annotated[float, Bounds(least=0)] = 0.3
    """Smaller weights are no edges."""
    restarts: Annotated[int, Bounds(least=1, most=10_000)] = 10
    """Searches: one from the order by variance, the others from random orders."""
    notears: bool = False
    """Run NOTEARS as well, for comparison; minutes for 50 columns."""
    edges: Path | None = None
    """CSV file for the edges that were found."""
    out: Path = Path("bilevel-dag.html")
    """Where the report goes."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides the random orders."""
