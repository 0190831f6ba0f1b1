"""A picture of a graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bilevel.report import figures


def graph(W: Float[np.ndarray, "d d"], names: Sequence[str]) -> Any:
    """Edges from left to right: columns stand one step right of the last that points to them."""
    depth = _depths(W)
    place = np.zeros((len(W), 2))
    for level in range(depth.max() + 1):
        here = np.flatnonzero(depth == level)
        shift = 0.25 * (level % 2)  # so that edges over several levels do not hide behind nodes
        place[here] = np.stack([np.full(len(here), level), _spread(len(here)) + shift], 1)
    with figures.style():
        tall = np.bincount(depth).max()
        figure = figures.new_figure(9.6, 1.2 + 0.55 * tall)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(-0.6, depth.max() + 0.6)
        axes.set_ylim(place[:, 1].min() - 0.6, place[:, 1].max() + 0.6)
        for i, j in np.argwhere(W != 0):
            positive = W[i, j] > 0
            axes.annotate(
                "",
                place[j],
                place[i],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": figures.series_color(0 if positive else 1),
                    "linestyle": "-" if positive else "--",
                    "linewidth": 0.6 + min(2.0, abs(W[i, j])),
                    "shrinkA": 14,
                    "shrinkB": 14,
                    "connectionstyle": "arc3,rad=0.08",
                },
            )
        for name, (x, y) in zip(names, place, strict=True):
            short = name if len(name) <= 14 else name[:13] + "…"
            axes.text(x, y, short, ha="center", va="center", color=figures.INK)
        return figure


def _depths(W: Float[np.ndarray, "d d"]) -> np.ndarray:
    """The longest path that ends in each column of an acyclic graph."""
    depth = np.zeros(len(W), int)
    for _ in range(len(W)):
        for i, j in np.argwhere(W != 0):
            depth[j] = max(depth[j], depth[i] + 1)
    return depth


def _spread(count: int) -> np.ndarray:
    return (count - 1) / 2 - np.arange(count)
