"""The options of `bilevel network`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


class Task(enum.Enum):
    """What to do with a network."""

    EQUILIBRIUM = "equilibrium"
    TOLLS = "tolls"
    CAPACITIES = "capacities"
    LINKS = "links"


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(options.Settings):
    """Equilibrium flows of a road network; tolls, capacities or links that shorten all trips."""

    links: Annotated[Path, Argument()]
    """The network: a TNTP file, or a table (from, to, capacity, free_flow_time, b, power)."""
    trips: Annotated[Path, Argument()]
    """The trips: a TNTP file, or a table (from, to, trips)."""
    design: Task = Task.EQUILIBRIUM
    """What to design."""
    only: tuple[str, ...] = ()
    """A link that may change, as FROM-TO; repeatable; all when absent."""
    most: Annotated[float | None, Bounds(above=0)] = None
    """Largest toll, in units of time, or addition to a capacity, 1 being the capacity."""
    price: Annotated[float, Bounds(least=0)] = 0.0
    """Of the largest addition to a link, in units of total time."""
    steps: Annotated[int, Bounds(least=1)] = 100
    """Equilibria that each way to design may solve."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides the draws of the genetic algorithm."""
    out: Path = Path("bilevel-network.html")
    """Where the report goes."""
    flows: Path | None = None
    """CSV file for the flows and costs of the links."""
