"""Figures of a network: a map of its flows, and designs against equilibria solved."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from bilevel.apps.networks.network import Network
from bilevel.report import figures


def places(network: Network) -> Any:
    """A place in the plane for each node, from free travel times (classical scaling)."""
    n = network
    size = (len(n.names),) * 2
    graph = csr_array((np.maximum(n.free, 1e-6), (n.start, n.end)), shape=size)
    apart = shortest_path(graph, directed=False)
    apart[~np.isfinite(apart)] = 2 * apart[np.isfinite(apart)].max()
    centred = apart**2 - (apart**2).mean(0)
    centred = -0.5 * (centred - centred.mean(1, keepdims=True))
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    return vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 1e-12))


def flow_map(network: Network, maps: Mapping[str, Any], capacity: Any) -> Any:
    """Links as lines as wide as their flow, coloured by flow over capacity; a panel a name."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    at = places(network)
    with figures.style():
        figure = figures.new_figure(9.6, 4.4)
        panels = figure.subplots(1, len(maps), squeeze=False)[0]
        top = max(flows.max() for flows in maps.values())
        along = at[network.end] - at[network.start]
        aside = np.stack([along[:, 1], -along[:, 0]], 1)
        aside *= (
            0.012 * np.ptp(at) / np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-12)
        )
        ends = np.stack([at[network.start] + aside, at[network.end] + aside], 1)  # keep right
        for axes, (name, flows) in zip(panels, maps.items(), strict=True):
            lines = LineCollection(
                list(ends), linewidths=0.4 + 5 * flows / top, cmap="viridis_r", capstyle="round"
            )
            lines.set_array(flows / capacity)
            lines.set_clim(0, 2)
            axes.add_collection(lines)
            if len(at) <= 60:
                for (x, y), label in zip(at, network.names, strict=True):
                    axes.annotate(label, (x, y), ha="center", va="center", fontsize=7,
                                  bbox={"boxstyle": "circle,pad=0.2", "fc": "white",
                                        "ec": figures.QUIET, "lw": 0.6}, color="black")  # fmt: skip
            axes.set_title(name)
            axes.autoscale()
            axes.margins(0.08)
            axes.set_aspect("equal")
            axes.set_axis_off()
        shades = ScalarMappable(Normalize(0, 2), "viridis_r")
        bar = figure.colorbar(shades, ax=list(panels), shrink=0.6, label="flow / capacity")
        bar.outline.set_visible(False)
        return figure


def race(histories: Mapping[str, Any], lines: Mapping[str, float]) -> Any:
    """Plot the best total travel time found so far over the number of equilibria solved."""
    with figures.style():
        figure = figures.new_figure(9.6, 3.2)
        axes = figure.subplots()
        for i, (name, values) in enumerate(histories.items()):
            x = np.arange(1, len(values) + 1)
            axes.plot(x, values, color=figures.series_color(i), label=name)
        figures.horizontals(axes, lines, labelled=True)
        axes.set_xlabel("equilibria solved")
        axes.set_title("total time and price, the best so far")
        axes.legend()
        return figure
