"""Solvers for the lower problem `min over y of g(x, y)`, and its solution as a function of x."""

from bilevel.lower import responses as responses
from bilevel.lower.argmin import argmin
from bilevel.lower.averaging import BiGSAM, Selected
from bilevel.lower.barrier import LogBarrier, with_barrier
from bilevel.lower.certified import Descend, NewtonCG
from bilevel.lower.descent import Descent, GradientStep, descend, lower_step
from bilevel.lower.duals_at import duals_at
from bilevel.lower.gibbs import MALA, AbstractGibbs, Cloud, Quadrature
from bilevel.lower.implicit import custom_fixed_point, custom_root
from bilevel.lower.kkt import Duals
from bilevel.lower.programs import AbstractQP, Mpax, Qpax, lp, qp
from bilevel.lower.refine import BallSGD, EpochSGD
from bilevel.lower.solvers import (
    AbstractLowerSolver,
    Accelerated,
    Gradient,
    LowerSolution,
    Optimistix,
    ToTolerance,
)
from bilevel.lower.sqp import SQP
from bilevel.lower.tilted import tilt, tilted

__all__ = [
    "MALA",
    "SQP",
    "AbstractGibbs",
    "AbstractLowerSolver",
    "AbstractQP",
    "Accelerated",
    "BallSGD",
    "BiGSAM",
    "Cloud",
    "Descend",
    "Descent",
    "Duals",
    "EpochSGD",
    "Gradient",
    "GradientStep",
    "LogBarrier",
    "LowerSolution",
    "Mpax",
    "NewtonCG",
    "Optimistix",
    "Qpax",
    "Quadrature",
    "Selected",
    "ToTolerance",
    "argmin",
    "custom_fixed_point",
    "custom_root",
    "descend",
    "duals_at",
    "lower_step",
    "lp",
    "qp",
    "responses",
    "tilt",
    "tilted",
    "with_barrier",
]
