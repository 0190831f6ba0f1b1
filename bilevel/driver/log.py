"""The history of a run, row by row, and the best iterate so far."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import Partial

from bilevel import trees
from bilevel.driver.result import Best
from bilevel.methods.base import State
from bilevel.typing import Lower, Upper

Metrics = Mapping[str, Callable[[Any, Any], Any]]
Row = dict[str, float]
OWN_COLUMNS = ("step", "seconds", "gradients")


class Kept(NamedTuple):
    """The best iterate so far."""

    value: float
    x: Upper
    y: Lower

    @classmethod
    def nothing(cls, state: State) -> "Kept":
        return cls(np.float64(np.nan), *trees.copy((state.x, state.y)))

    def or_better(self, value: float, state: State, largest: bool) -> "Kept":
        better = value > self.value if largest else value < self.value
        if better or np.isnan(self.value):
            return Kept(np.float64(value), *trees.copy((state.x, state.y)))
        return self


class Log:
    """Rows of step, seconds, oracle calls, what the method reports and the metrics."""

    def __init__(
        self,
        gradients: float,
        reports: Iterable[str],
        metrics: Metrics | None,
        best: Best | None,
        state: State,
    ):
        self._gradients, self._reports, self.best = gradients, tuple(reports), best
        self._metrics = {name: as_metric(fn) for name, fn in (metrics or {}).items()}
        self._before, self._began = 0.0, time.perf_counter()
        self.rows: list[Row] = []
        self.kept = None if best is None else Kept.nothing(state)

    def resume(self, rows: list[Row], kept: Kept | None) -> None:
        """Go on from the history and the best iterate of an earlier process."""
        self.rows, self.kept, self._before = list(rows), kept, rows[-1]["seconds"]

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def last(self) -> Row:
        return self.rows[-1] if self.rows else {}

    def add(self, step: int, state: State, info: Mapping[str, Any]) -> Row:
        measured = (
            jax.device_get(_measure(self._metrics, state.x, state.y)) if self._metrics else {}
        )
        numbers = {name: float(value) for name, value in {**info, **measured}.items()}
        row = {
            "step": step,
            "seconds": self._before + self.seconds,
            "gradients": step * self._gradients,
            **numbers,
        }
        self.rows.append(row)
        if self.kept is not None and self.best is not None:
            self.kept = self.kept.or_better(numbers[self.best.metric], state, self.best.largest)
        return row

    def history(self) -> dict[str, np.ndarray]:
        rows = (*reversed(self.rows), OWN_COLUMNS, self._reports, self._metrics)
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: np.array([row.get(name, np.nan) for row in self.rows]) for name in names}


def as_metric(fn: Callable) -> Partial:
    """The function as `jax.jit` takes it: what a `Partial` binds is an argument, not a constant."""
    bound = isinstance(fn, Partial) and all(map(eqx.is_array, jax.tree.leaves(fn)))
    return fn if bound else Partial(fn)  # pyright: ignore


@jax.jit
def _measure(metrics: dict[str, Partial], x: Upper, y: Lower):
    return {name: fn(x, y) for name, fn in metrics.items()}


def as_best(keep: str | Best, metrics: Metrics | None) -> Best | None:
    """The metric to keep by; `None` for the last iterate."""
    if keep == "last":
        return None
    names = list(metrics or {})
    best = keep if isinstance(keep, Best) else Best(keep)
    if best.metric == "best" and len(names) == 1:
        best = Best(names[0])
    if best.metric not in names:
        raise ValueError(
            f"keep={keep!r} names no metric; it is 'last', or one of: {', '.join(names) or 'none'}."
        )
    return best
