"""Tables in CSV, TSV and parquet files, whose every field is checked and named when it is wrong."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.files.needs import needs
from bilevel.files.text import decode, read_bytes

PARQUET = b"PAR1"
MOST_COLUMNS = 100_000
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))  # in lower case
WANTED = "a CSV table is needed, with the names of the columns in its first line, or parquet"


class Categories(NamedTuple):
    """A column of labels."""

    codes: Int[np.ndarray, " rows"]  # which of the names, from 0
    names: tuple[str, ...]  # numbers in order of size, texts in order of the alphabet


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Args:
        file: where they come from.
        columns: the fields of each column as they stand in the file, by its name.
        lines: the line of the file on which each row ends; the number of the row in parquet.
    """

    file: Path
    columns: dict[str, tuple[Any, ...]]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order of the file."""
        return tuple(self.columns)

    def column(self, name: str) -> tuple[Any, ...]:
        """The fields of one column.

        Raises:
            ValueError: there is no such column; the message lists those there are.
        """
        if name not in self.columns:
            raise ValueError(f"{self.file} has no column {name!r}; it has {listed(self.names)}.")
        return self.columns[name]

    def others(self, *names: str) -> tuple[str, ...]:
        """All columns but these."""
        for name in names:
            self.column(name)
        return tuple(name for name in self.names if name not in names)

    def numbers(self, names: Sequence[str]) -> Float[np.ndarray, "rows columns"]:
        """Columns of finite numbers.

        Raises:
            ValueError: a field is missing or no finite number; the message names line and column.
        """
        columns = [self._each(name, _number, "a finite number") for name in names]
        return np.array(columns, np.float64).reshape(len(columns), len(self)).T

    def is_numeric(self, name: str) -> bool:
        """Whether every field of a column that is not missing is a finite number."""
        return all(_number(field) is not None for field in self.column(name) if not missing(field))

    def categories(self, name: str) -> Categories:
        """A column of labels: texts, or numbers that stand for classes.

        Raises:
            ValueError: a label is missing; the message names line and column.
        """
        labels = self._each(name, lambda field: str(field).strip(), "a label")
        order = sorted(set(labels))
        if all(_number(label) is not None for label in order):
            order.sort(key=float)
        code = {label: i for i, label in enumerate(order)}
        return Categories(np.array([code[label] for label in labels], int), tuple(order))

    def _each(self, name: str, read: Any, wanted: str) -> list[Any]:
        values = []
        for line, field in zip(self.lines, self.column(name), strict=True):
            where = f"{self.file}, line {line}, column {name!r}"
            if missing(field):
                raise ValueError(
                    f"{where}: the value is missing; {wanted} is needed. "
                    "Fill in missing values or leave these rows out."
                )
            value = read(field)
            if value is None:
                raise ValueError(f"{where}: {_short(field)}; {wanted} is needed.")
            values.append(value)
        return values


def read_table(file: str | Path) -> Table:
    """Read a table.

    Columns are separated by commas, by semicolons or tabs where the first line has no comma. The
    first line names the columns. Text is UTF-8.

    Args:
        file: CSV, TSV or parquet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line: it is no table, has no rows, a row has too few
            or too many fields, a column has no name or that of another.
        ImportError: the file is parquet, and pyarrow is not installed.
    """
    file = Path(file)
    content = read_bytes(file, WANTED)
    if content.startswith(PARQUET):
        return _parquet(content, file)
    return _csv(decode(content, file, WANTED), file)


def missing(field: Any) -> bool:
    """Whether a field says that there is no value."""
    if isinstance(field, str):
        return field.strip().lower() in MISSING
    return field is None or (isinstance(field, float) and math.isnan(field))


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, the first of them where there are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_short, names[:most])) + more


def _csv(text: str, file: Path) -> Table:
    first = text.lstrip().partition("\n")[0]
    separator = next((one for one in ",;\t" if one in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: not CSV: {error}.") from error
    if not rows:
        raise ValueError(f"{file} is empty; {WANTED}.")
    (_, header), *rows = rows
    names = [name.strip() for name in header]
    _check_names(names, file)
    if not rows:
        raise ValueError(f"{file} has names of columns, but no row.")
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"{file}, line {line}: {len(row)} fields; {len(names)} are needed, "
                "as in the first line."
            )
    columns = zip(*(row for _, row in rows), strict=True)
    return Table(file, dict(zip(names, columns, strict=True)), tuple(line for line, _ in rows))


def _check_names(names: Sequence[str], file: Path) -> None:
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"{file} has {len(names)} columns; at most {MOST_COLUMNS} are read.")
    for place, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{file}, line 1: column {place} has no name.")
        if names.index(name) + 1 < place:
            raise ValueError(f"{file}, line 1: two columns are named {name!r}.")
    if all(_number(name) is not None for name in names):
        raise ValueError(f"{file}, line 1: only numbers; the names of the columns are needed.")


def _parquet(content: bytes, file: Path) -> Table:
    parquet = needs("pyarrow.parquet", extra="parquet", what="parquet files")
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (OSError, ValueError) as error:  # what pyarrow raises comes from these two
        raise ValueError(f"{file} is a parquet file, but cannot be read: {error}") from error
    _check_names(table.column_names, file)
    if not table.num_rows:
        raise ValueError(f"{file} has columns, but no row.")
    columns = {name: tuple(table[name].to_pylist()) for name in table.column_names}
    return Table(file, columns, tuple(range(1, table.num_rows + 1)))


def _number(field: Any) -> float | None:
    """A finite number, or none."""
    try:
        value = float(field)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _short(field: Any) -> str:
    text = repr(field)
    return text if len(text) <= 40 else f"{text[:37]}..."
