"""`bilevel bench textbook`: the front door on a file of small problems, judged independently."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

import bilevel as bl
from bilevel import jobs, report
from bilevel.cli import typed
from bilevel.cli.console import plain_console
from bilevel.cli.options import Textbook
from bilevel.cli.tables import new_table
from bilevel.driver import FollowerCertificate
from bilevel.global_search import double_precision
from bilevel.problems import referee, textbook
from bilevel.report import figures

COLUMNS = (
    "problem", "x, y", "upper", "reference", "gap", "gap (referee)", "violation", "seconds",
    "outcome",
)  # fmt: skip
NAMED = ("infeasible", "unbounded", "follower not optimal")  # outcomes that claim no solution
BEATEN = 1e-8  # the largest gap of a point that beats a reference
ERROR = "ended with an error"
MARKS = {
    referee.Kind.SOLVED.value: "solved",
    referee.Kind.NO_REFERENCE.value: "no reference",
    referee.Kind.WORSE.value: "worse",
    referee.Kind.NOT_OPTIMAL.value: "not the follower's",
    referee.Kind.INFEASIBLE.value: "infeasible",
    ERROR: "error",
}


class Row(NamedTuple):
    """One problem: what the front door said, and what the referee found."""

    name: str
    entries: tuple[int, int]  # of x and y
    kind: str  # by the referee's strict rule
    claimed: bool  # the front door's status is ok
    agrees: bool  # the certificate and the referee on the follower's answer and on feasibility
    upper: float
    reference: float | None
    gap: float  # by the certificate
    referee_gap: float
    violation: float
    seconds: float
    status: str
    x: list[float]
    y: list[float]
    loose: str = ""  # the kind by the referee's loose rule
    lower: float = float("nan")
    outcome: str = ""  # of the status
    processor: float = float("nan")  # seconds


def run(options: Textbook) -> None:
    """Solve each, show a table, write `textbook.json` and `textbook.png` into the folder.

    Raises:
        ValueError: in one sentence, before anything runs.
    """
    problems, only, out = options.problems, options.only, options.out
    with double_precision(), _programs(options.cache):
        books, executor = textbook.load(problems), typed.executor(options.executor)
        unknown = [part for part in only if not any(part in book.name for book in books)]
        if unknown:
            raise ValueError(f"{problems} has no problem with {unknown[0]!r} in its name.")
        books = [b for b in books if not only or any(part in b.name for part in only)]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{out} cannot be made: {error.strerror}.") from error
        console = plain_console()
        if not console.is_terminal:  # into a file: as wide as it needs
            console = plain_console(width=150)
        begin, processor = time.monotonic(), time.process_time()
        rows, environment = [], report.environment()
        found = jobs.each(solve, books)
        if executor is not None:
            found = jobs.each(partial(_there, problems), (b.name for b in books), executor)
        for i, row in enumerate(found):
            rows.append(row)
            spent = time.monotonic() - begin, time.process_time() - processor
            _save(rows, *spent, environment, out / "textbook.json")
            if console.is_terminal:
                console.print(f"{i + 1}/{len(books)} {rows[-1].name}: {rows[-1].kind}", end="\r")
        seconds, processor = time.monotonic() - begin, time.process_time() - processor
    console.print(table(rows))
    console.print(summary(rows, seconds, processor), soft_wrap=True)
    try:
        draw(rows, out / "textbook.png")
    except Exception as error:  # the table is kept already
        console.print(f"No figure: {type(error).__name__}: {error}")
    told = out / "textbook.json", out / "textbook.png"
    console.print(f"Written: {told[0]}, {told[1]}", soft_wrap=True)


def _save(rows: Sequence[Row], seconds: float, processor: float, environment, path: Path) -> None:
    """All rows so far; a file is either the last one or the next."""
    content = {
        "seconds": seconds,
        "processor": processor,
        "environment": environment,
        "rows": [row._asdict() for row in rows],
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    part.replace(path)


def _there(problems: Path, name: str) -> Row:
    """A job where an executor runs it; the file is read there."""
    with double_precision():
        return solve(next(book for book in textbook.load(problems) if book.name == name))


def solve(book: textbook.Textbook) -> Row:
    """The front door on one problem, in double precision, and the referee on its answer."""
    begin, processor = time.monotonic(), time.process_time()
    try:
        result = bl.solve(book.problem, x0=book.x0, y0=book.y0, progress=False)
        seconds, processor = time.monotonic() - begin, time.process_time() - processor
        return _judged(book, result, seconds, processor)
    except Exception as error:  # a failure of one problem is a line of the table
        return _failed(book, time.monotonic() - begin, error)


def _judged(book: textbook.Textbook, result: bl.Result, seconds: float, processor: float) -> Row:
    proof = result.certificate
    assert isinstance(proof, FollowerCertificate)
    verdict = referee.judge(book, np.asarray(result.x), np.asarray(result.y))
    feasible = verdict.violation <= referee.FEASIBLE
    return Row(
        name=book.name,
        entries=(len(book.x0), len(book.y0)),
        kind=verdict.kind.value,
        claimed=result.status.ok,
        agrees=(proof.feasible, proof.optimal) == (feasible, verdict.optimal()),
        upper=verdict.upper,
        reference=book.upper_best,
        gap=proof.gap,
        referee_gap=verdict.gap,
        violation=verdict.violation,
        seconds=seconds,
        status=str(result.status),
        x=np.asarray(result.x).tolist(),
        y=np.asarray(result.y).tolist(),
        loose=verdict.by(referee.LOOSE, book.upper_best).value,
        lower=verdict.lower,
        outcome=result.status.outcome.value,
        processor=processor,
    )


def _failed(book: textbook.Textbook, seconds: float, error: Exception) -> Row:
    nan = float("nan")
    told = f"{type(error).__name__}: {error}"
    sizes, numbers = (len(book.x0), len(book.y0)), (nan, nan, nan)
    return Row(
        book.name, sizes, ERROR, False, True, nan, book.upper_best, *numbers, seconds, told, [], []
    )


def table(rows: Sequence[Row]) -> Table:
    """Every problem, a line each."""
    shown = new_table("Textbook problems")
    for name in COLUMNS:
        text = name in ("problem", "x, y", "outcome")
        shown.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        fine = row.kind in (referee.Kind.SOLVED.value, referee.Kind.NO_REFERENCE.value)
        shown.add_row(*map(Text, cells(row)), style=None if fine and row.agrees else "bold")
    return shown


def cells(row: Row) -> list[str]:
    """One line of the table, as `COLUMNS` name it."""
    return [
        row.name,
        f"{row.entries[0]}, {row.entries[1]}",
        f"{row.upper:.6g}",
        "–" if row.reference is None else f"{row.reference:.6g}",
        f"{row.gap:.1e}",
        f"{row.referee_gap:.1e}",
        f"{row.violation:.1e}",
        f"{row.seconds:.2f}",
        ", ".join([MARKS[row.kind], *remarks(row)]),
    ]


def remarks(row: Row) -> list[str]:
    """What a line of the table says besides the referee's kind."""
    said = [f"named {row.outcome}"] if row.outcome in NAMED else []
    if row.reference is not None and row.upper < row.reference and _holds(row):
        below = row.reference - row.upper
        if below > referee.STRICT.room(row.reference):
            beaten = row.referee_gap < BEATEN
            said.append("reference beaten" if beaten else "below the reference, unexplained")
        elif below > referee.STRICT.worse * (1 + abs(row.reference)):
            said.append("reference is rounded")
    return said if row.agrees else [*said, "certificate disagrees"]


def summary(rows: Sequence[Row], seconds: float, processor: float) -> str:
    """How many were solved, which were not, and whether the certificates told the truth."""
    known = [row for row in rows if row.reference is not None]
    solved = [row for row in known if row.kind == referee.Kind.SOLVED.value]
    counts = Counter(row.kind for row in rows)
    false = [row.name for row in rows if row.claimed and not _holds(row)]
    split = [row.name for row in rows if not row.agrees]
    loose = [row for row in known if row.loose == referee.Kind.SOLVED.value]
    odd = [row.name for row in rows if any("unexplained" in said for said in remarks(row))]
    lines = [
        f"{len(solved)} of {len(known)} problems with a reference solved ({len(loose)} by the "
        "loose rule); "
        + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        + ".",
        f"{seconds:.0f} s in all, {sum(row.seconds for row in rows):.0f} s of them solving; "
        f"{processor:.0f} s of processor time.",
        f"Claimed falsely: {', '.join(false) or 'none'}.",
        f"Certificate and referee disagree on: {', '.join(split) or 'none'}.",
        f"Below the reference without an explanation: {', '.join(odd) or 'none'}.",
    ]
    fine = (referee.Kind.SOLVED.value, referee.Kind.NO_REFERENCE.value)
    failed = [f"{row.name} ({row.kind})" for row in rows if row.kind not in fine]
    return "\n".join([*lines, f"Not solved: {', '.join(failed) or 'none'}."])


def _holds(row: Row) -> bool:
    """Whether the referee found the point feasible and the follower's answer."""
    return row.kind not in (ERROR, referee.Kind.INFEASIBLE.value, referee.Kind.NOT_OPTIMAL.value)


def draw(rows: Sequence[Row], path: Path) -> None:
    """How many are solved within a time, and what became of the others."""
    with figures.style():
        figure = figures.new_figure(9.6, 3.2)
        figure.patch.set_alpha(1)
        profile, kinds = figure.subplots(1, 2, width_ratios=(3, 2))
        solved = np.sort([r.seconds for r in rows if r.kind == referee.Kind.SOLVED.value])
        profile.step(
            np.append(solved, max(row.seconds for row in rows)),
            np.append(np.arange(1, len(solved) + 1), len(solved)),
            where="post",
            color=figures.series_color(0),
        )
        known = sum(row.reference is not None for row in rows)
        profile.axhline(known, color=figures.QUIET, linewidth=1, linestyle=(0, (4, 3)))
        profile.annotate(
            f"{known} with a reference",
            (0, known),
            xycoords=("axes fraction", "data"),
            xytext=(4, -11),
            textcoords="offset points",
            color=figures.QUIET,
        )
        profile.set_xscale("log")
        profile.set_ylim(0, known * 1.05 + 1)
        profile.set_title("Problems solved within a time")
        profile.set_xlabel("seconds")
        counts = Counter(row.kind for row in rows)
        order = [kind for kind in MARKS if counts[kind]]
        bars = kinds.barh(
            order, [counts[k] for k in order], color=figures.series_color(0), height=0.6
        )
        kinds.bar_label(bars, padding=3)
        kinds.invert_yaxis()
        kinds.margins(x=0.15)
        kinds.grid(visible=False, axis="y")
        kinds.set_title("What became of them")
        kinds.set_xlabel("problems")
        figure.savefig(path, dpi=150, metadata={"Software": None})


@contextlib.contextmanager
def _programs(folder: Path | None) -> Iterator[None]:
    """Compiled programs are kept in a folder meanwhile, whatever their size."""
    if folder is None:
        yield
        return
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
