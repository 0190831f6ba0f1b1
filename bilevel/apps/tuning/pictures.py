"""Figures of the report of `bilevel tune`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bilevel.apps.tuning.search import GRID, Tuned
from bilevel.report import figures, series_color

MOST_BARS = 40
LEAST_FACTOR = 10.0  # between the ends of an axis of penalties: a few percent are no difference


def validation_curve(tuned: Tuned, unit: float, measure: str) -> Any:
    """The validation loss of each common penalty, and that of the tuned ones."""
    with figures.style():
        figure = figures.new_figure(9.6, 3.2)
        axes = figure.subplots()
        axes.plot(
            np.exp(GRID), tuned.curve * unit, "o-", color=series_color(0), label="one penalty"
        )
        label = "tuned penalties"
        axes.axhline(tuned.validation * unit, color=series_color(1), linestyle="--", label=label)
        axes.set_xscale("log")
        axes.set_xlabel("penalty shared by all coefficients")
        axes.set_ylabel(f"validation {measure}")
        axes.legend()
        return figure


def bars(names: Sequence[str], penalties: Float[np.ndarray, " n"], common: float) -> Any:
    """Penalties from the smallest, on a log axis; the extremes where there are many."""
    order = np.argsort(penalties)
    if len(order) > MOST_BARS:
        order = np.r_[order[: MOST_BARS // 2], order[-MOST_BARS // 2 :]]
    with figures.style():
        figure = figures.new_figure(9.6, 0.9 + 0.2 * len(order))
        axes = figure.subplots()
        places = np.arange(len(order))[::-1]
        axes.hlines(places, common, penalties[order], color=figures.LINE, linewidth=3)
        axes.plot(penalties[order], places, "o", color=series_color(1))
        axes.axvline(common, color=series_color(0), linestyle="--")
        axes.set_xscale("log")
        axes.set_xlim(*_around([common, *penalties[order]]))
        axes.set_yticks(places, [names[i][:30] for i in order])
        axes.set_xlabel("penalty; dashed, the best one shared by all")
        axes.grid(visible=False, axis="y")
        return figure


def _around(penalties: Sequence[float]) -> tuple[float, float]:
    """The ends of a log axis that holds them, in the middle where they are close together."""
    low, high = np.log(np.min(penalties)), np.log(np.max(penalties))
    margin = 0.05 * (high - low) + max(np.log(LEAST_FACTOR) - (high - low), 0) / 2
    return float(np.exp(low - margin)), float(np.exp(high + margin))
