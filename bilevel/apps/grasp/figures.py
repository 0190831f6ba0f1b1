"""A picture of grasps."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.apps.grasp.problem import Outline, forces, frames
from bilevel.report import figures


def picture(
    outline: Outline, grasps: Mapping[str, Float[Array, " n"]], *, friction: float = 0.1
) -> Any:
    """A panel for each grasp: the outline, friction cones, and the forces nearest to balance."""
    with figures.style():
        figure = figures.new_figure(9.6, 9.6 / len(grasps))
        around = np.asarray(jax.vmap(outline)(jnp.linspace(0, 2 * jnp.pi, 200)))
        panels = figure.subplots(1, len(grasps), squeeze=False)[0]
        for axes, (name, x) in zip(panels, grasps.items(), strict=True):
            points, normals, tangents = map(np.asarray, frames(outline, x))
            pressures, sideways = np.asarray(forces(outline, friction, x)).reshape(2, -1, 1)
            pushes = pressures * normals + sideways * tangents
            axes.plot(*around.T, color=figures.QUIET)
            for side in (-1, 1):
                ends = points + 0.5 * (normals + side * friction * tangents)
                for start, end in zip(points, ends, strict=True):
                    axes.plot(*np.stack([start, end]).T, color=figures.QUIET, linewidth=0.8)
            style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.012}
            axes.quiver(*points.T, *pushes.T, color=figures.series_color(0), zorder=3, **style)
            axes.plot(*points.T, "o", color=figures.series_color(1), markersize=6)
            axes.set_title(name, loc="center")
            axes.set_aspect("equal")
            axes.margins(0.12)
            axes.set_axis_off()
        return figure
