"""A live line in the terminal; nothing anywhere else."""

import sys
import time
from collections.abc import Mapping


class Quiet:
    """Shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, step: int, row: Mapping[str, float]) -> None:
        pass


class Bar:
    """A bar with the speed, the time left and the latest values, redrawn ten times a second."""

    def __init__(self, label: str, start: int, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._start, self._began, self._shown = start, time.perf_counter(), 0.0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TextColumn("[cyan]{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[values]}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._progress.add_task(
            label, total=total, completed=start, speed="compiling", values=""
        )

    def __enter__(self):
        self._progress.start()
        self._progress.refresh()
        return self

    def __exit__(self, *_):
        self._progress.refresh()
        self._progress.stop()

    def update(self, step: int, row: Mapping[str, float]) -> None:
        now = time.perf_counter()
        speed = (step - self._start) / max(now - self._began, 1e-9)
        hidden = ("step", "seconds")
        values = "  ".join(f"{name} {row[name]:.4g}" for name in row if name not in hidden)
        told = f"{speed:,.0f} steps/s" if step > self._start else "compiling"
        self._progress.update(self._task, completed=step, speed=told, values=values)
        if now - self._shown > 0.1:
            self._shown = now
            self._progress.refresh()


def watch(progress: bool | None, label: str, start: int, total: int) -> Quiet | Bar:
    """A bar when asked for, or when nobody said and standard error is a terminal."""
    shown = sys.stderr.isatty() if progress is None else progress
    return Bar(label, start, total) if shown else Quiet()
