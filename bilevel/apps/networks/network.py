"""A road network with its trips, read from TNTP or CSV files."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bilevel.files import read_table, tntp

LINK_COLUMNS = ("from", "to", "capacity", "free_flow_time", "b", "power")
TRIP_COLUMNS = ("from", "to", "trips")
MOST_LINKS = 5000  # matrices of links by links are held


@dataclasses.dataclass(frozen=True)
class Network:
    """Links with travel times `t = free (1 + b (v / capacity)^power)`, and trips to be made.

    Nodes are numbered from 0 here, in the order of `names`. A node below `first_through` is begun
    or ended at, but not passed through.
    """

    names: tuple[str, ...]
    start: Int[np.ndarray, " links"]
    end: Int[np.ndarray, " links"]
    capacity: Float[np.ndarray, " links"]
    free: Float[np.ndarray, " links"]
    b: Float[np.ndarray, " links"]
    power: Float[np.ndarray, " links"]
    origin: Int[np.ndarray, " pairs"]
    destination: Int[np.ndarray, " pairs"]
    trips: Float[np.ndarray, " pairs"]
    first_through: int = 0

    @property
    def links(self) -> int:
        return len(self.start)

    def label(self, link: int) -> str:
        """`6-8`, a link by its nodes."""
        return f"{self.names[self.start[link]]}-{self.names[self.end[link]]}"

    def find(self, label: str) -> Int[np.ndarray, " found"]:
        """The links with a label, `6-8`.

        Raises:
            ValueError: there is none.
        """
        first, _, last = label.partition("-")
        known = {name: i for i, name in enumerate(self.names)}
        for name in (first, last):
            if name not in known:
                raise ValueError(f"{label!r}: there is no node {name!r}.")
        found = np.flatnonzero((self.start == known[first]) & (self.end == known[last]))
        if not len(found):
            raise ValueError(f"{label!r}: there is no link from {first} to {last}.")
        return found


def travel_time(free: Any, b: Any, power: Any, capacity: Any, flows: Any) -> Any:
    """The time on each link, of NumPy or JAX arrays."""
    return free * (1 + b * (flows / capacity) ** power)


def read(links: str | Path, trips: str | Path) -> Network:
    """Read a network and its trips: TNTP, or tables with a name that ends in csv, tsv or parquet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line; or the network is too large.
    """
    tables = [Path(f).suffix.lower() in (".csv", ".tsv", ".parquet") for f in (links, trips)]
    if tables[0] != tables[1]:
        raise ValueError(f"{links} and {trips} must both be tables, or both TNTP.")
    network = _tables(links, trips) if tables[0] else _tntp(links, trips)
    if network.links > MOST_LINKS:
        raise ValueError(f"{links} has {network.links} links; at most {MOST_LINKS} are handled.")
    return network


def _tntp(links: str | Path, trips: str | Path) -> Network:
    found = tntp.read_links(links)
    pairs = tntp.read_trips(trips, found)
    return Network(
        tuple(str(i) for i in range(1, found.nodes + 1)),
        found.start - 1,
        found.end - 1,
        found.capacity,
        found.free_flow_time,
        found.b,
        found.power,
        pairs.origin - 1,
        pairs.destination - 1,
        pairs.trips,
        found.first_thru_node - 1,
    )


def _tables(links: str | Path, trips: str | Path) -> Network:
    table, pairs = read_table(links), read_table(trips)
    numbers = table.numbers(LINK_COLUMNS[2:])
    ends = [[str(n).strip() for n in table.column(name)] for name in ("from", "to")]
    names = tuple(dict.fromkeys(n for pair in zip(*ends, strict=True) for n in pair))
    known = {name: i for i, name in enumerate(names)}
    for row, (line, values) in enumerate(zip(table.lines, numbers, strict=True)):
        where = f"{table.file}, line {line}"
        if values[0] <= 0 or values[1:].min() < 0:
            raise ValueError(f"{where}: capacity must be above 0, the other numbers at least 0.")
        if ends[0][row] == ends[1][row]:
            raise ValueError(f"{where}: a link from {ends[0][row]} to itself.")
    flows = pairs.numbers(("trips",))[:, 0]
    asked = []
    for row, line in enumerate(pairs.lines):
        where = f"{pairs.file}, line {line}"
        pair = [str(pairs.column(name)[row]).strip() for name in ("from", "to")]
        for name in pair:
            if name not in known:
                raise ValueError(f"{where}: no link begins or ends at {name!r}.")
        if flows[row] < 0:
            raise ValueError(f"{where}: {flows[row]:g} trips; at least 0 are needed.")
        if flows[row] and pair[0] != pair[1]:
            asked.append((known[pair[0]], known[pair[1]], flows[row]))
    if not asked:
        raise ValueError(f"{pairs.file} has no trips between two nodes.")
    origin, destination, count = np.array(asked).T
    start, end = (np.array([known[n] for n in side]) for side in ends)
    capacity, free, b, power = numbers.T
    pairs_told = origin.astype(int), destination.astype(int), count
    return Network(names, start, end, capacity, free, b, power, *pairs_told)
