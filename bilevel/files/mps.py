"""Linear programs with whole numbers in MPS, and what of them is a follower's in MibS's AUX form.

MPS is read in its free form: fields are separated by spaces, so that names hold none; fixed MPS
without spaces in names reads the same. AUX comes in both of its forms: by numbers (`N`, `M`, `LC`,
`LR`, `LO`, `OS`), and by names (`@VARSBEGIN` ... ).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevel.files.text import read_text

MOST_BYTES = 64 << 20
MOST_SIZE = 20_000  # of rows, and of columns
SECTIONS = ("NAME", "OBJSENSE", "ROWS", "COLUMNS", "RHS", "RANGES", "BOUNDS", "ENDATA")
VALUED = ("LO", "UP", "FX", "LI", "UI")
FREE = ("FR", "MI", "PL", "BV")


class Linear(NamedTuple):
    """`min (or max) cost·z + constant` over `row_lower <= rows z <= row_upper` and bounds."""

    file: Path
    columns: tuple[str, ...]
    row_names: tuple[str, ...]
    cost: Float[np.ndarray, " n"]
    constant: float
    maximize: bool
    rows: Float[np.ndarray, "m n"]
    row_lower: Float[np.ndarray, " m"]
    row_upper: Float[np.ndarray, " m"]
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    integer: Bool[np.ndarray, " n"]


class Follower(NamedTuple):
    """What of a linear program is the follower's."""

    columns: Bool[np.ndarray, " n"]
    rows: Bool[np.ndarray, " m"]
    cost: Float[np.ndarray, " n"]  # to be minimised


class _Draft:
    """What has been read so far."""

    def __init__(self):
        self.kinds: dict[str, str] = {}  # of rows: N, L, G, E
        self.objective = ""
        self.columns: dict[str, int] = {}
        self.entries: dict[tuple[str, str], float] = {}
        self.sides: dict[str, float] = {}
        self.ranges: dict[str, float] = {}
        self.bounds: dict[str, list[float | None]] = {}
        self.integer: set[str] = set()
        self.inside = self.maximize = False


def read_mps(file: str | Path) -> Linear:
    """Read a linear program with whole numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line.
    """
    file, draft, section = Path(file), _Draft(), ""
    readers = {
        "OBJSENSE": _sense,
        "ROWS": _row,
        "COLUMNS": _column,
        "RHS": _side,
        "RANGES": _range,
        "BOUNDS": _bound,
    }
    for line, text in _lines(read_text(file, "an MPS file is needed", MOST_BYTES), "*"):
        where, words = f"{file}, line {line}", text.split()
        if not text[0].isspace():
            section = words[0].upper()
            if section not in SECTIONS:
                raise ValueError(f"{where}: unknown section {words[0][:40]!r}.")
            if section == "ENDATA":
                return _linear(file, draft)
            if section == "OBJSENSE" and len(words) == 2:
                _sense(draft, words[1:], where)
            continue
        if section not in readers:
            raise ValueError(f"{where}: {text.strip()[:40]!r} before a section such as ROWS.")
        readers[section](draft, words, where)
    raise ValueError(f"{file} has no line ENDATA; it may be cut off.")


def read_aux(file: str | Path, linear: Linear) -> Follower:
    """Read which columns and rows of a linear program are the follower's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line.
    """
    file = Path(file)
    lines = list(_lines(read_text(file, "an AUX file is needed", MOST_BYTES), "#*"))
    if not lines:
        raise ValueError(f"{file} is empty; an AUX file is needed.")
    read = _aux_by_names if lines[0][1].strip().startswith("@") else _aux_by_numbers
    columns, rows, cost = read(file, lines, linear)
    if not columns:
        raise ValueError(f"{file} names no column of the follower.")
    of = np.isin(np.arange(len(linear.columns)), list(columns))
    values = np.zeros(len(linear.columns))
    values[columns] = cost
    return Follower(of, np.isin(np.arange(len(linear.row_names)), list(rows)), values)


def _lines(text: str, comments: str) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor a comment, with their numbers."""
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip() and line.lstrip()[0] not in comments:
            yield i, line.rstrip()


# --- the sections of MPS -------------------------------------------------------------------------


def _sense(draft: _Draft, words: list[str], where: str) -> None:
    sense = words[0].upper()
    if sense not in ("MAX", "MIN", "MAXIMIZE", "MINIMIZE"):
        raise ValueError(f"{where}: {words[0][:40]!r}; MIN or MAX is needed.")
    draft.maximize = sense.startswith("MAX")


def _row(draft: _Draft, words: list[str], where: str) -> None:
    if len(words) != 2 or words[0].upper() not in "NLGE":
        raise ValueError(f"{where}: a row is one of N, L, G, E and a name.")
    kind, name = words[0].upper(), words[1]
    if name in draft.kinds:
        raise ValueError(f"{where}: two rows are named {name!r}.")
    draft.kinds[name] = kind
    if kind == "N" and not draft.objective:
        draft.objective = name
    if len(draft.kinds) > MOST_SIZE:
        raise ValueError(f"{where}: more than {MOST_SIZE} rows.")


def _column(draft: _Draft, words: list[str], where: str) -> None:
    if len(words) == 3 and words[1].strip("'").upper() == "MARKER":
        mark = words[2].strip("'").upper()
        if mark not in ("INTORG", "INTEND"):
            raise ValueError(f"{where}: unknown marker {words[2][:40]!r}.")
        draft.inside = mark == "INTORG"
        return
    name = words[0]
    for row, value in _pairs(draft, words[1:], where):
        if (row, name) in draft.entries:
            raise ValueError(f"{where}: column {name!r} has two entries in row {row!r}.")
        draft.entries[row, name] = value
    draft.columns.setdefault(name, len(draft.columns))
    if len(draft.columns) > MOST_SIZE:
        raise ValueError(f"{where}: more than {MOST_SIZE} columns.")
    if draft.inside:
        draft.integer.add(name)


def _side(draft: _Draft, words: list[str], where: str) -> None:
    draft.sides |= dict(_pairs(draft, words[len(words) % 2 :], where))


def _range(draft: _Draft, words: list[str], where: str) -> None:
    draft.ranges |= dict(_pairs(draft, words[len(words) % 2 :], where))


def _pairs(draft: _Draft, words: list[str], where: str) -> Iterator[tuple[str, float]]:
    if len(words) not in (2, 4):
        raise ValueError(f"{where}: one or two pairs of a row and a number are needed.")
    for row, value in zip(words[::2], words[1::2], strict=True):
        if row not in draft.kinds:
            raise ValueError(f"{where}: there is no row {row!r}.")
        yield row, _number(value, where)


def _bound(draft: _Draft, words: list[str], where: str) -> None:
    kind = words[0].upper()
    if kind not in VALUED + FREE:
        raise ValueError(f"{where}: unknown bound {words[0][:40]!r}.")
    words = words[1:]
    if kind in VALUED:
        if len(words) not in (2, 3):
            raise ValueError(f"{where}: a bound needs a column and a number.")
        name, value = words[-2], _number(words[-1], where, infinite=True)
    else:
        in_last = len(words) == 1 or words[-1] in draft.columns
        name, value = (words[-1] if in_last else words[-2]) if words else "", np.inf
    if name not in draft.columns:
        raise ValueError(f"{where}: there is no column {name!r}.")
    held = draft.bounds.setdefault(name, [None, None])
    if kind in ("LO", "LI", "FX"):
        held[0] = value
    if kind in ("UP", "UI", "FX"):
        held[1] = value
    if kind == "UP" and value < 0 and held[0] is None:
        held[0] = -np.inf
    if kind in ("FR", "MI"):
        held[0] = -np.inf
    if kind in ("FR", "PL"):
        held[1] = np.inf
    if kind == "BV":
        held[:] = [0.0, 1.0]
    if kind in ("LI", "UI", "BV"):
        draft.integer.add(name)


def _number(text: str, where: str, *, infinite: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if np.isnan(value) or (np.isinf(value) and not infinite):
        raise ValueError(f"{where}: {text[:40]!r}; a finite number is needed.")
    return float(np.sign(value) * np.inf) if abs(value) >= 1e30 else value


def _linear(file: Path, draft: _Draft) -> Linear:
    names = [name for name, kind in draft.kinds.items() if kind != "N"]
    if not draft.objective or not draft.columns:
        raise ValueError(f"{file} has no {'columns' if draft.objective else 'row N, a loss'}.")
    at, n, m = {name: i for i, name in enumerate(names)}, len(draft.columns), len(names)
    if n * (m + n) > MOST_SIZE * 1000:
        raise ValueError(f"{file} has {m} rows of {n} columns; too many for a matrix in full.")
    rows, cost = np.zeros((m, n)), np.zeros(n)
    for (row, column), value in draft.entries.items():
        if row == draft.objective:
            cost[draft.columns[column]] = value
        elif row in at:
            rows[at[row], draft.columns[column]] = value
    low, high = np.full(m, -np.inf), np.full(m, np.inf)
    for name, i in at.items():
        kind, side, spread = draft.kinds[name], draft.sides.get(name, 0.0), draft.ranges.get(name)
        low[i] = side if kind in "GE" else -np.inf
        high[i] = side if kind in "LE" else np.inf
        if spread is not None:
            low[i] = side - abs(spread) if kind == "L" else side + min(spread, 0) * (kind == "E")
            high[i] = side + abs(spread) if kind == "G" else side + max(spread, 0) * (kind == "E")
    bounds = [draft.bounds.get(name, [None, None]) for name in draft.columns]
    return Linear(
        file,
        tuple(draft.columns),
        tuple(names),
        cost,
        -draft.sides.get(draft.objective, 0.0),
        draft.maximize,
        rows,
        low,
        high,
        np.array([0.0 if b[0] is None else b[0] for b in bounds]),
        np.array([np.inf if b[1] is None else b[1] for b in bounds]),
        np.array([name in draft.integer for name in draft.columns]),
    )


# --- the two forms of AUX ------------------------------------------------------------------------


def _aux_by_numbers(file: Path, lines, linear: Linear) -> tuple[list[int], list[int], list[float]]:
    columns: list[int] = []
    rows: list[int] = []
    cost: list[float] = []
    counts, sign = {"N": -1, "M": -1}, 1.0
    for line, text in lines:
        where, words = f"{file}, line {line}", text.split()
        if len(words) != 2:
            raise ValueError(f"{where}: a word such as LC, and a number, are needed.")
        word, value = words[0].upper(), _number(words[1], where)
        if word in counts:
            counts[word] = int(value)
        elif word == "LC":
            columns.append(_index(value, len(linear.columns), "columns", where))
        elif word == "LR":
            rows.append(_index(value, len(linear.row_names), "rows", where))
        elif word == "LO":
            cost.append(value)
        elif word == "OS":
            if value not in (1, -1):
                raise ValueError(f"{where}: OS is {value:g}; 1 (min) or -1 (max) is needed.")
            sign = value
        elif word in ("IC", "IB"):
            raise ValueError(f"{where}: {word} is of an interdiction file; write its rows in MPS.")
        else:
            raise ValueError(f"{where}: unknown word {words[0][:40]!r}.")
    told = {"N": len(columns), "M": len(rows)}
    for word, name in (("N", "LC"), ("M", "LR")):
        if counts[word] not in (-1, told[word]):
            raise ValueError(
                f"{file}: {word} is {counts[word]}, but lines {name} are {told[word]}."
            )
    if len(cost) != len(columns):
        raise ValueError(f"{file}: {len(cost)} lines LO; {len(columns)} are needed, one a column.")
    _check_once(columns, "LC", file)
    return columns, rows, [sign * value for value in cost]


def _aux_by_names(file: Path, lines, linear: Linear) -> tuple[list[int], list[int], list[float]]:
    at = {name: i for i, name in enumerate(linear.columns)}
    row_at = {name: i for i, name in enumerate(linear.row_names)}
    columns: list[int] = []
    rows: list[int] = []
    cost: list[float] = []
    section = ""
    for line, text in lines:
        where, words = f"{file}, line {line}", text.split()
        if words[0].startswith("@"):
            section = words[0].upper()
        elif section == "@VARSBEGIN":
            if len(words) != 2 or words[0] not in at:
                raise ValueError(f"{where}: a column of {linear.file} and a number are needed.")
            columns.append(at[words[0]])
            cost.append(_number(words[1], where))
        elif section == "@CONSTRSBEGIN":
            if words[0] not in row_at:
                raise ValueError(f"{where}: {linear.file} has no row {words[0][:40]!r}.")
            rows.append(row_at[words[0]])
        elif section in ("@NUMVARS", "@NUMCONSTRS", "@NAME", "@MPS", "@LP"):
            continue
        else:
            raise ValueError(f"{where}: {text.strip()[:40]!r} outside @VARSBEGIN, @CONSTRSBEGIN.")
    _check_once(columns, "@VARSBEGIN", file)
    return columns, rows, cost


def _index(value: float, count: int, what: str, where: str) -> int:
    if value != int(value) or not 0 <= value < count:
        raise ValueError(f"{where}: {value:g}; the {what} are 0 to {count - 1}.")
    return int(value)


def _check_once(columns: list[int], what: str, file: Path) -> None:
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file}: a column stands twice among {what}.")
