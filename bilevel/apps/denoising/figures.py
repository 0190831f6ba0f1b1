"""Figures of the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from bilevel.apps.denoising.learn import psnr
from bilevel.report import figures


def before_and_after(columns: Mapping[str, Any], clean: Any, most: int = 4) -> Any:
    """A row for each of some pictures: clean, then every version of it under its PSNR."""
    rows = min(most, len(clean))
    shown = {"clean": clean, **columns}
    with figures.style():
        figure = figures.new_figure(9.6, 0.3 + 9.6 / len(shown) * rows)
        grid = figure.subplots(rows, len(shown), squeeze=False)
        for j, (name, pictures) in enumerate(shown.items()):
            ratios = psnr(clean[:rows], pictures[:rows])
            for i in range(rows):
                axes = grid[i, j]
                axes.imshow(pictures[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_axis_off()
                told = name if i == 0 else ""
                told += "" if name == "clean" else f"  {ratios[i]:.1f} dB"
                axes.set_title(told.strip(), loc="center", fontweight="normal")
        return figure


def filters(kernels: Float[np.ndarray, "K size size"], weights: Float[np.ndarray, " K"]) -> Any:
    """Filters in the order of their weights, which stand above them."""
    order = np.argsort(-weights)[:24]
    columns = min(len(order), 8)
    rows = -(-len(order) // columns)
    with figures.style():
        figure = figures.new_figure(9.6, 1.4 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, k in zip(panels, order, strict=False):
            size = abs(kernels[k]).max()
            axes.imshow(kernels[k], cmap="PuOr", vmin=-size, vmax=size, interpolation="nearest")
            axes.set_title(f"{weights[k]:.3f}", loc="center", fontweight="normal")
        return figure
