"""A grasp with two fingers: from contacts a quarter turn apart to opposite ones.

The energy of two contacts on a circle with friction 0.1 is 0 exactly if they are within
2 atan(0.1) = 11.4 degrees of opposite:

    170 degrees apart: 0, 168: 1.3e-05, 160: 0.0028, 120: 0.085, 90: 0.2025

The plan starts at 90 degrees and ends at 169.7, where the energy is 0. Three fingers on a body
with three corners, from a start that holds nothing, end at an energy of 0 as well.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from bilevel.apps import grasp

jax.config.update("jax_enable_x64", True)


def main(steps: int = 300, save: Path | None = None) -> float:
    circle = grasp.ellipse()
    measure = jax.jit(lambda x: grasp.energy(circle, x))
    for apart in (170, 168, 160, 120, 90):
        value = measure(jnp.deg2rad(jnp.array([0.0, apart])))
        print(f"{apart} degrees apart: energy {value:.4g}")
    start = jnp.deg2rad(jnp.array([0.0, 90.0]))
    found = grasp.plan(circle, start, steps=steps, progress=False)
    apart = float(jnp.rad2deg(found.x[1] - found.x[0]))
    print(f"planned: {apart:.1f} degrees apart, energy {measure(found.x):.1g}")
    body, three = grasp.rounded(3, 0.1), jnp.array([0.0, 0.5, 1.5])
    held = grasp.plan(body, three, steps=steps, progress=False)
    print(f"three fingers: {grasp.energy(body, three):.2g}, then {grasp.energy(body, held.x):.1g}")
    if save is not None:
        grasps = {"two fingers, start": start, "planned": found.x}
        grasp.picture(circle, grasps).savefig(save, dpi=90, facecolor="white")
    return apart


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="where the picture goes")
    main(save=parser.parse_args().save)
