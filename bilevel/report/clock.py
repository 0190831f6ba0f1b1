"""Wall time of a run, separated from its compilation time."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Clock(NamedTuple):
    """Wall time of each row of a history, without compilation.

    The first chunk of steps includes compilation. Its time beyond the median of later chunks of the
    same length is counted as compilation.
    """

    running: np.ndarray  # seconds at each row, compilation left out; starts at 0
    compiling: float  # seconds; NaN when there is no later chunk to compare with


def clock(history: Mapping[str, np.ndarray]) -> Clock:
    """Split the seconds of `result.history`; with fewer than three rows nothing can be split."""
    seconds = np.asarray(history.get("seconds", ()), float)
    if len(seconds) < 3:
        return Clock(seconds - seconds[:1], float("nan"))
    steps = np.diff(np.asarray(history["step"], float))
    pace = np.median(np.diff(seconds)[1:] / np.maximum(steps[1:], 1))  # seconds a step
    first = min(pace * steps[0], seconds[1])
    running = np.concatenate([[0.0], seconds[1:] - seconds[1] + first])
    return Clock(running, float(seconds[1] - first))
