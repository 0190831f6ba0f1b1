"""Grasp planning in the plane: where to touch a body, with contact forces from a quadratic program.

The upper variable holds the places of the contacts on the outline of the body. The lower problem
finds the forces y (pressure and friction of each contact) whose wrench is nearest to zero:

    min over y of  ½ ‖G(x) y‖²   subject to   0 <= pressure <= 1, |friction| <= mu · pressure,
                                              Σ pressure >= 1

`G(x) y` is the sum of the forces and of their torques. The upper loss is what is left: it is 0 if
and only if these contacts can hold the body. Its gradient holds y fixed (Danskin's theorem), which
the problem declares.

Paper: Chen, Ke, Wang. "BODex: scalable and efficient robotic dexterous grasp synthesis using
bilevel optimization". ICRA 2025, arXiv:2412.16490. In the plane, two fingers or more, and without
the hand's kinematics.
"""

from bilevel.apps.grasp.figures import picture
from bilevel.apps.grasp.plan import energy, plan
from bilevel.apps.grasp.problem import ellipse, forces, frames, problem, rounded, wrenches

__all__ = [
    "ellipse",
    "energy",
    "forces",
    "frames",
    "picture",
    "plan",
    "problem",
    "rounded",
    "wrenches",
]
