"""Solvers for the adjoint system `H v = b`, `H = ∂²g/∂y²`."""

from bilevel.linear import matrices
from bilevel.linear.adapter import Lineax
from bilevel.linear.base import AbstractLinear
from bilevel.linear.direct import Dense, Nystrom
from bilevel.linear.equations import Equations
from bilevel.linear.iterative import CG, FixedPoint, Neumann, NormalCG, RandomizedNeumann

__all__ = [
    "CG",
    "AbstractLinear",
    "Dense",
    "Equations",
    "FixedPoint",
    "Lineax",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "RandomizedNeumann",
    "matrices",
]
