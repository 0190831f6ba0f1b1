"""Solvers for the lower problem `min over y of g(x, y)`, and its solution as a function of x."""

from bilevel.lower.argmin import argmin
from bilevel.lower.descent import Descent, GradientStep, descend, lower_step
from bilevel.lower.solvers import (
    AbstractLowerSolver,
    Accelerated,
    Gradient,
    LowerSolution,
    Optimistix,
    ToTolerance,
)

__all__ = [
    "AbstractLowerSolver",
    "Accelerated",
    "Descent",
    "Gradient",
    "GradientStep",
    "LowerSolution",
    "Optimistix",
    "ToTolerance",
    "argmin",
    "descend",
    "lower_step",
]
