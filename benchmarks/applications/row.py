"""A row: one task, ours beside a rival; and the rows that are kept."""

import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from benchmarks.harness import RESULTS, machine

KEPT = RESULTS / "applications.json"


class Row(NamedTuple):
    """One task, ours beside a rival."""

    task: str
    measure: str  # of an answer
    rival: str
    ours: float
    theirs: float
    seconds: float
    rival_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.rival_seconds


def timed(call: Callable, *args, **options):
    """What a call returns, and the processor seconds it took."""
    begin = time.process_time()
    found = jax.block_until_ready(call(*args, **options))
    return found, time.process_time() - begin


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| task | measure | ours | theirs | what is used today | seconds, ours / theirs |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        seconds = f"{r.seconds:.2g} / {r.rival_seconds:.2g} = {r.ratio:.2g}"
        values = f"{r.ours:.4g} | {r.theirs:.4g}"
        lines.append(f"| {r.task} | {r.measure} | {values} | {r.rival} | {seconds} |")
    return "\n".join(lines)


def kept() -> list[Row]:
    return [Row(*row) for found in _rows().values() for row in found]


def keep(name: str, rows: Sequence[Row]) -> None:
    """These are now the rows of a part; its place among the others stays."""
    shown = [[float(f"{v:.4g}") if isinstance(v, float) else v for v in row] for row in rows]
    content = {"machine": machine(), "rows": _rows() | {name: shown}}
    KEPT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _rows() -> dict[str, list]:
    return json.loads(KEPT.read_text("utf-8"))["rows"] if KEPT.exists() else {}
