"""Timing, in turn and in one process, and one way to show and keep what came out."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")


class Row(NamedTuple):
    """One line of the table.

    `ratio` is the median over the rounds, `low` and `high` its extremes; `quiet` compares the
    fastest times of both sides, which what else the machine does can only lengthen.
    """

    what: str
    ours: float
    reference: float | None = None
    unit: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    quiet: float | None = None
    target: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Above the target by both measures: one alone is noise more often than not."""
        if self.ratio is None or self.target is None:
            return False
        return min(self.ratio, self.quiet or self.ratio) > self.target


class Seconds(float):
    """What a case returns to have its own measure of time taken."""


def interleave(
    cases: dict[str, Callable[[], Any]], repeats: int, *, settle: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times, in the order A B C, C B A, A B C, ...

    Every case runs `settle` times first, which compiles it. A slow spell of the machine then
    falls on all of them alike. Short calls and many rounds stand noise best.
    """
    import jax

    times = {name: [] for name in cases}
    for call in cases.values():
        for _ in range(settle):
            jax.block_until_ready(call())
    for r in range(repeats):
        for name in list(cases) if r % 2 == 0 else reversed(cases):
            start = time.perf_counter()
            got = jax.block_until_ready(cases[name]())
            told = isinstance(got, Seconds)
            times[name].append(got if told else time.perf_counter() - start)
    return times


def compare(
    what: str,
    ours: list[float],
    reference: list[float],
    *,
    scale: float = 1e6,
    unit: str = "µs",
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row from paired times: medians in `unit`, the median ratio and its extremes."""
    ratios = [a / b for a, b in zip(ours, reference, strict=True)]
    return Row(
        what,
        statistics.median(ours) * scale,
        statistics.median(reference) * scale,
        unit,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        min(ours) / min(reference),
        target,
        note,
    )


# --- showing and keeping ------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Rows as aligned text; a ratio above its target is marked."""
    head = ("what", "ours", "reference", "", "ratio", "min to max", "quiet", "target", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = {0, 3, 8}

    def show(line):
        cells = (
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([show(head), "-" * len(show(head)), *(show(line) for line in lines[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        f"{row.ours:.4g}",
        "" if row.reference is None else f"{row.reference:.4g}",
        row.unit,
        "" if row.ratio is None else f"{row.ratio:.3g}",
        "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}",
        "" if row.quiet is None else f"{row.quiet:.3g}",
        "" if row.target is None else f"{row.target:g}",
        " ".join(filter(None, ["above target" if row.missed else "", row.note])),
    )


def machine() -> dict[str, Any]:
    """What the numbers depend on, without names of people or hosts."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def keep(part: str, rows: list[Row]) -> pathlib.Path:
    """Write `results/<part>.json`, rounded to four digits so that a diff is readable."""
    record = {
        "part": part,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rows": [{k: _rounded(v) for k, v in row._asdict().items()} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(part: str, measure: Callable[[], list[Row]]) -> None:
    """Run one part from the command line."""
    rows = measure()
    print(table(rows))
    print(f"\nkept in {keep(part, rows)}")
