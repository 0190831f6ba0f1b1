"""Rewards as heat maps: on the grid, or as a table of states and actions."""

from typing import Any

import numpy as np
from jaxtyping import Float

from bilevel.apps.rl.grid import ARROWS, Grid
from bilevel.report import figures

Table = Float[np.ndarray, "states actions"]


def heat_maps(tables: dict[str, Table], policy: Table | dict[str, Table], grid: Grid | None) -> Any:
    """A panel for each reward. On a grid a cell has the policy's mean and its likeliest move.

    Args:
        policy: of all panels, or of each by its name.
    """
    policies = policy if isinstance(policy, dict) else dict.fromkeys(tables, policy)
    with figures.style():
        tall = min(8.0, 1.5 + 0.22 * len(next(iter(tables.values()))))
        if grid is not None:
            rows, columns = grid.walls.shape
            tall = min(4.2, 0.9 + 7.5 / len(tables) * rows / columns)
        figure = figures.new_figure(min(9.6, 4.8 * len(tables)), tall)
        for axes, (name, table) in zip(
            figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
        ):
            law = policies[name]
            image = table if grid is None else _on_grid(grid, np.sum(law * table, axis=1))
            drawn = axes.imshow(image, cmap="viridis", aspect="auto" if grid is None else "equal")
            axes.set_title(name)
            axes.grid(False)
            if grid is None:
                axes.set(xlabel="action", ylabel="state")
            else:
                axes.set(xticks=[], yticks=[])
                _arrows(axes, grid, law, image)
            figure.colorbar(drawn, ax=axes, shrink=0.8)
        return figure


def _on_grid(grid: Grid, values: Float[np.ndarray, " states"]) -> Float[np.ndarray, "rows columns"]:
    image = np.full(grid.walls.shape, np.nan)
    image[tuple(grid.cells.T)] = values
    return image


def _arrows(axes: Any, grid: Grid, policy: Table, image: np.ndarray) -> None:
    middle = (np.nanmin(image) + np.nanmax(image)) / 2
    for (row, column), law in zip(grid.cells, policy, strict=True):
        color = "white" if image[row, column] < middle else "black"
        arrow = ARROWS[int(np.argmax(law))]
        axes.text(column, row, arrow, ha="center", va="center", color=color, fontsize=11)
