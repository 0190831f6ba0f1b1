"""What is wrong with a file of feedback, collected over all of its rows."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

LISTED = 8  # lines named in a message

A = TypeVar("A")
B = TypeVar("B")


class BadRow(ValueError):
    """A row that cannot be used; the message tells file, line and why."""

    def __init__(self, file: Path, line: int, fault: str):
        super().__init__(f"{file}, line {line}: {fault}")
        self.line = line


class LineRef(NamedTuple):
    """Where a row stands; rows of a table count as lines."""

    file: Path
    line: int

    def wrong(self, fault: str) -> BadRow:
        return BadRow(self.file, self.line, fault)


@dataclass
class Findings:
    """What reading found besides rows that can be used.

    Args:
        bad: rows that cannot be used.
        notes: sentences to tell the user.
    """

    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def each(self, items: Iterable[A], make: Callable[[A], B]) -> list[B]:
        """`make` of every item; the errors are kept."""
        made = []
        for item in items:
            try:
                made.append(make(item))
            except BadRow as error:
                self.bad.append(error)
        return made

    def settle(self, file: str | Path, skip_bad: bool = False) -> None:
        """Refuse the bad rows, all in one message, or note that they are left out.

        Raises:
            ValueError: there are bad rows, and they are not to be skipped.
        """
        if not self.bad:
            return
        first, *others = self.bad
        if skip_bad:
            self.notes.append(f"{file}: {_count(self.bad)}; left out. The first: {first}")
        elif others:
            raise ValueError(
                f"{first} In all, {_count(self.bad)}. Mend them, or leave them out with --skip-bad."
            )
        else:
            raise ValueError(f"{first} Mend it, or leave it out with --skip-bad.") from first


@contextlib.contextmanager
def settled(findings: Findings | None, file: str | Path) -> Iterator[Findings]:
    """The findings given. Where there are none, bad rows raise at the end, and notes warn."""
    if findings is not None:
        yield findings
        return
    new = Findings()
    yield new
    new.settle(file)
    for note in new.notes:
        warnings.warn(note, stacklevel=4)


def _count(bad: list[BadRow]) -> str:
    """Such as `2 rows are bad (lines 3, 7)`."""
    lines = sorted({error.line for error in bad})
    named = ", ".join(map(str, lines[:LISTED])) + (", ..." if len(lines) > LISTED else "")
    return (
        f"1 row is bad (line {named})"
        if len(bad) == 1
        else (f"{len(bad)} rows are bad (lines {named})")
    )
