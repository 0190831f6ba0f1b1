"""Figures in one style: drawn by matplotlib, without pyplot, and set into a page as SVG."""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bilevel.report.numbers import shown

# Okabe and Ito's colours, darkened where they were pale on white: told apart by any eye.
SERIES = (
    "#0072b2", "#d55e00", "#009e73", "#b4558c", "#a67c00", "#56748f", "#7a5cc0", "#4d4d4d",
)  # fmt: skip
MARKERS = "osD^vPXh"
MARGIN = 3  # around a part of a figure, in points
INK, QUIET, LINE = "#1b1f24", "#5d6670", "#dde1e6"

# In a page, colours follow its theme (page.css).
THEME = {color: f"var(--series-{i + 1})" for i, color in enumerate(SERIES)} | {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
}
STYLE = {
    "font.size": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "bilevel",
}


def series_color(i: int) -> str:
    """The colour of the i-th run, the same in every figure and table."""
    return SERIES[i % len(SERIES)]


def style() -> Any:
    """A context for figures; it restores the matplotlib settings of the caller at exit."""
    import matplotlib

    context: Any = matplotlib.rc_context  # its annotation wants literal names
    return context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"})


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches; a page is 9.6 wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def svg(figure: Any) -> str:
    """A figure as inline SVG, with the colours and fonts of the page and unique identifiers."""
    stream = io.StringIO()
    with style():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+px)[^;"]*', r"font-size: \1", text)
    for color, variable in THEME.items():
        text = text.replace(color, variable)
    own = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = text.replace("url(#", f"url(#{own}-")
    return re.sub(r'(xlink:href|href)="#', rf'\1="#{own}-', text)


def parts(figure: Any) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height of each legend and panel in the SVG of a figure.

    Panels are in the order in which they were made, with their labels and colour bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    bars = {
        axes: [one.colorbar.ax for one in (*axes.images, *axes.collections) if one.colorbar]
        for axes in figure.axes
    }
    of_others = {bar for found in bars.values() for bar in found}
    groups = [[legend] for legend in figure.legends]
    groups += [
        [one, *bars[one]] for one in figure.axes if one.get_visible() and one not in of_others
    ]
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()
    found = []
    with style():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        for group in groups:
            box = Bbox.union([one.get_tightbbox(renderer) for one in group])
            left, top = scale * box.x0 - MARGIN, height - scale * box.y1 - MARGIN
            sizes = scale * box.width + 2 * MARGIN, scale * box.height + 2 * MARGIN
            found.append((left, top, *sizes))
    return found


class Run(NamedTuple):
    """The data of a run that is plotted."""

    columns: Mapping[str, np.ndarray]
    x_axes: Sequence[np.ndarray]  # one for each panel of a row
    broke_off: bool = False  # its last point is marked with a cross


def curves(
    runs: Mapping[str, Run],
    columns: Sequence[str],
    x_axes: Sequence[str],
    lines: Mapping[str, Mapping[str, float]],
) -> Any:
    """A row of panels for each column of the histories, one panel for each x-axis.

    Args:
        runs: by name, which the legend shows.
        columns: columns to plot; a run without a column is omitted from its panels.
        x_axes: names of the x-axes.
        lines: for each column, horizontal reference lines by name.
    """
    with style():
        figure = new_figure(9.6, 0.5 + 2.9 * len(columns))
        figure.get_layout_engine().set(hspace=0.08, wspace=0.05)
        grid = figure.subplots(len(columns), len(x_axes), squeeze=False, sharey="row")
        for axes_row, column in zip(grid, columns, strict=True):
            for axes in axes_row:  # on a narrow page each panel stands alone
                axes.tick_params(labelleft=True)
                axes.set_title(column)
            for j, (axes, abscissa) in enumerate(zip(axes_row, x_axes, strict=True)):
                for i, (name, run) in enumerate(runs.items()):
                    if column in run.columns:
                        x, values = run.x_axes[j], run.columns[column]
                        _curve(axes, x, values, name, i, run.broke_off)
                axes.set_xlabel(abscissa)
                axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.10g}")
            known = {n: v for n, v in lines.get(column, {}).items() if np.isfinite(v)}
            drawn = [run.columns[column] for run in runs.values() if column in run.columns]
            _scale(axes_row[0], drawn, known.values())
            for axes in axes_row:
                horizontals(axes, known, labelled=axes is axes_row[-1])
        handles, names = grid[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), 6))
        return figure


def _curve(axes, x, values, name: str, i: int, broke_off: bool) -> None:
    x, values = np.asarray(x, float), np.asarray(values, float)
    seen = np.isfinite(x) & np.isfinite(values)
    x, values = x[seen], values[seen]
    axes.plot(
        x,
        values,
        color=series_color(i),
        marker=MARKERS[i % len(MARKERS)],
        markevery=max(1, len(x) // 8),
        label=name,
    )
    if broke_off and len(x):
        axes.plot(x[-1:], values[-1:], "x", color=series_color(i), markersize=11, mew=2.2)


def _scale(axes, columns: Sequence[np.ndarray], lines: Iterable[float]) -> None:
    """Axis limits for all points except the start, which is far from the others."""
    later = [np.asarray(c, float)[1 if len(c) > 2 else 0 :] for c in columns]
    values = np.concatenate([*later, np.fromiter(lines, float)])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 100 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
    elif high > low:
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def horizontals(axes, lines: Mapping[str, float], labelled: bool) -> None:
    """Dashed reference lines, with labels to the right of the axes that do not overlap."""
    for value in lines.values():
        axes.axhline(value, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    if not labelled:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = _apart([to_axes.transform((0, value))[1] for value in lines.values()], 0.08)
    for (name, value), height in zip(lines.items(), heights, strict=True):
        axes.annotate(
            f"{name} {shown(float(value))}",
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=QUIET,
        )


def _apart(heights: Sequence[float], distance: float) -> list[float]:
    """The heights, moved so that neighbours are `distance` apart; the mean is kept."""
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, float)[order]
    for _ in range(100):
        for i in range(len(placed) - 1):
            short = distance - (placed[i + 1] - placed[i])
            if short > 1e-6:
                placed[i] -= short / 2
                placed[i + 1] += short / 2
    out = np.empty_like(placed)
    out[order] = placed
    return out.tolist()
