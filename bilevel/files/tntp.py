"""Road networks and trip tables in the TNTP form of the Transportation Networks collection.

A file begins with lines such as `<NUMBER OF NODES> 24` up to `<END OF METADATA>`; `~` begins a
comment. A network has a link a line, ten fields and a semicolon. Trips have `Origin 1` and then
`destination : trips;`, several a line.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.files.text import read_text

MOST_BYTES = 256 << 20
MOST_NODES = 1_000_000
FIELDS = ("init node", "term node", "capacity", "length", "free flow time", "b", "power", "speed",
          "toll", "link type")  # fmt: skip
TAG = re.compile(r"<([^>]*)>\s*(.*)")
PAIR = re.compile(r"\s*([^:;]+):([^:;]+)")


class Links(NamedTuple):
    """The links of a network; nodes are numbered from 1, as in the file."""

    file: Path
    lines: Int[np.ndarray, " links"]  # of the file
    start: Int[np.ndarray, " links"]
    end: Int[np.ndarray, " links"]
    capacity: Float[np.ndarray, " links"]
    free_flow_time: Float[np.ndarray, " links"]
    b: Float[np.ndarray, " links"]
    power: Float[np.ndarray, " links"]
    toll: Float[np.ndarray, " links"]
    nodes: int
    zones: int
    first_thru_node: int  # smaller nodes are only begun or ended at


class Trips(NamedTuple):
    """The trips between zones, those of zero left out."""

    file: Path
    lines: Int[np.ndarray, " pairs"]
    origin: Int[np.ndarray, " pairs"]
    destination: Int[np.ndarray, " pairs"]
    trips: Float[np.ndarray, " pairs"]


def read_links(file: str | Path) -> Links:
    """Read a network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line.
    """
    file = Path(file)
    tags, lines = _parts(file, "a TNTP network is needed")
    nodes = _count(tags, "NUMBER OF NODES", file)
    zones = _count(tags, "NUMBER OF ZONES", file, most=nodes)
    first = _count(tags, "FIRST THRU NODE", file, default=1, most=nodes + 1)
    rows, found = [], []
    for line, text in lines:
        where = f"{file}, line {line}"
        fields = text.rstrip(";").split()
        if len(fields) != len(FIELDS):
            raise ValueError(
                f"{where}: {len(fields)} fields; a link has {len(FIELDS)}: {', '.join(FIELDS)}."
            )
        numbers = [_number(v, f"{where}: {n}") for v, n in zip(fields, FIELDS, strict=True)]
        for name, node in zip(FIELDS[:2], numbers[:2], strict=True):
            _check_node(node, nodes, f"{where}: {name}")
        if numbers[0] == numbers[1]:
            raise ValueError(f"{where}: a link from node {numbers[0]:g} to itself.")
        if numbers[2] <= 0:
            raise ValueError(f"{where}: capacity is {numbers[2]:g}; a number above 0 is needed.")
        for name, value in list(zip(FIELDS, numbers, strict=True))[4:7]:
            if value < 0:
                raise ValueError(f"{where}: {name} is {value:g}; at least 0 is needed.")
        rows.append(numbers)
        found.append(line)
    if not rows:
        raise ValueError(f"{file} has no links.")
    told = _count(tags, "NUMBER OF LINKS", file, default=len(rows))
    if told != len(rows):
        raise ValueError(f"{file} has {len(rows)} links, and says that it has {told}.")
    table = np.array(rows)
    start, end = table[:, :2].T.astype(int)
    capacity, free, b, power, toll = table[:, (2, 4, 5, 6, 8)].T
    told = nodes, zones, first
    return Links(file, np.array(found), start, end, capacity, free, b, power, toll, *told)


def read_trips(file: str | Path, links: Links) -> Trips:
    """Read the trips over a network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line.
    """
    file = Path(file)
    tags, lines = _parts(file, "a TNTP trip table is needed")
    _count(tags, "NUMBER OF ZONES", file, default=links.zones)
    origin, rows, seen = None, [], set()
    for line, text in lines:
        where = f"{file}, line {line}"
        if text.lower().startswith("origin"):
            origin = _number(text[6:].strip(), f"{where}: the origin")
            _check_node(origin, links.zones, f"{where}: the origin", "zones")
            continue
        if origin is None:
            raise ValueError(f"{where}: trips before the first line `Origin ...`.")
        for part in filter(str.strip, text.split(";")):
            pair = PAIR.fullmatch(part)
            if pair is None:
                raise ValueError(f"{where}: {part.strip()!r}; `destination : trips;` is needed.")
            to = _number(pair[1].strip(), f"{where}: the destination")
            _check_node(to, links.zones, f"{where}: the destination", "zones")
            trips = _number(pair[2].strip(), f"{where}: the trips to {to:g}")
            if trips < 0:
                raise ValueError(f"{where}: {trips:g} trips; at least 0 are needed.")
            if (origin, to) in seen:
                raise ValueError(f"{where}: trips from {origin:g} to {to:g} stand there twice.")
            seen.add((origin, to))
            if trips and origin != to:
                rows.append((line, origin, to, trips))
    if not rows:
        raise ValueError(f"{file} has no trips between two zones.")
    table = np.array(rows)
    lines_of, origins, destinations = table[:, :3].T.astype(int)
    return Trips(file, lines_of, origins, destinations, table[:, 3])


def _parts(file: Path, wanted: str) -> tuple[dict[str, tuple[int, str]], Iterator[tuple[int, str]]]:
    """The values before the end of the metadata, and the lines after it without comments."""
    text = read_text(file, wanted, MOST_BYTES)
    lines = [(i, line.partition("~")[0].strip()) for i, line in enumerate(text.splitlines(), 1)]
    tags = {}
    for k, (i, line) in enumerate(lines):
        if not line:
            continue
        tag = TAG.fullmatch(line)
        if tag is None:
            raise ValueError(f"{file}, line {i}: {line[:40]!r} before <END OF METADATA>; {wanted}.")
        name = tag[1].strip().upper()
        if name == "END OF METADATA":
            return tags, (pair for pair in lines[k + 1 :] if pair[1])
        tags[name] = i, tag[2].strip()
    raise ValueError(f"{file} has no line <END OF METADATA>; {wanted}.")


def _count(tags, name: str, file: Path, default: int | None = None, most: int = MOST_NODES) -> int:
    if name not in tags:
        if default is None:
            raise ValueError(f"{file} has no line <{name}>.")
        return default
    line, text = tags[name]
    where = f"{file}, line {line}: <{name}>"
    value = _number(text, where)
    if value != int(value) or not 1 <= value <= most:
        raise ValueError(f"{where} is {text}; a whole number from 1 to {most} is needed.")
    return int(value)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{where} is {text[:40]!r}; a finite number is needed.")
    return value


def _check_node(value: float, most: int, where: str, what: str = "nodes") -> None:
    if value != int(value) or not 1 <= value <= most:
        raise ValueError(f"{where} is {value:g}; the {what} are 1 to {most}.")
