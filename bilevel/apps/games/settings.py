"""The options of `bilevel mip`: nothing here imports an array library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


@dataclass(frozen=True, kw_only=True)
class Mip(options.Settings):
    """Solve a linear bilevel program with whole numbers, from MPS and MibS AUX, to a proven gap."""

    mps: Annotated[Path, Argument()]
    """The leader's loss, all rows and all columns, in MPS."""
    aux: Annotated[Path, Argument()]
    """Which rows and columns are the follower's, and its loss, in MibS's AUX form."""
    nodes: Annotated[int, Bounds(least=1)] = 10_000
    """Programs that may be solved."""
    big_m: Annotated[float | None, Bounds(above=0)] = None
    """A bound on multipliers and slacks to try first; it is checked, not believed."""
    out: Path | None = None
    """CSV file for the columns and their values."""
