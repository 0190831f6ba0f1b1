"""Figures of the demo."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bilevel.apps import cleaning
from bilevel.report import figures


def histograms(
    weights: Mapping[str, np.ndarray], wrong: np.ndarray | None = None, bins: int = 20
) -> Any:
    """Weights of right samples upwards and of wrong ones downwards, a panel a method.

    Where nobody knows which are wrong, all go upwards.
    """
    known = wrong is not None
    wrong = wrong if wrong is not None else np.zeros(len(next(iter(weights.values()))), bool)
    with figures.style():
        figure = figures.new_figure(9.6, 2.9)
        panels = figure.subplots(1, len(weights), sharex=True, sharey=True, squeeze=False)[0]
        edges = np.linspace(0, 1, bins + 1)
        for i, (axes, (name, values)) in enumerate(zip(panels, weights.items(), strict=True)):
            right, bad = (np.histogram(values[m], edges)[0] for m in (~wrong, wrong))
            width = {"width": 0.85 / bins, "align": "edge", "linewidth": 0}
            axes.bar(edges[:-1], right, color=figures.QUIET, **width)
            axes.bar(edges[:-1], -bad, color=figures.series_color(i), **width)
            axes.axhline(0, color=figures.QUIET, linewidth=0.8)
            axes.axvline(0.5, color=figures.QUIET, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_title(name)
            axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axes.set_xlabel("weight")
            axes.grid(visible=False, axis="x")
        top = max(1, *(abs(limit) for axes in panels for limit in axes.get_ylim()))
        panels[0].set_ylim(-top * known, top)
        panels[0].yaxis.set_major_formatter(lambda count, _: f"{abs(count):.0f}")
        panels[0].set_ylabel("wrong ←  samples  → right" if known else "samples")
        return figure


def thumbnails(samples: cleaning.Labelled, rows: np.ndarray) -> Any:
    """Some digits, each under the label it came with."""
    inputs, labels = np.asarray(samples.inputs), np.asarray(samples.labels)
    with figures.style():
        figure = figures.new_figure(9.6, 1.25)
        for axes, i in zip(figure.subplots(1, len(rows)), rows, strict=True):
            image = inputs[i].reshape(8, 8)
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(f"“{labels[i]}”", loc="center", fontweight="normal")
        return figure
