"""Solvers for the adjoint system `H v = b`, `H = ∂²g/∂y²`."""

from bilevel.linear.base import AbstractLinear
from bilevel.linear.direct import Dense, Nystrom
from bilevel.linear.iterative import CG, FixedPoint, Neumann, NormalCG, RandomizedNeumann

__all__ = [
    "CG",
    "AbstractLinear",
    "Dense",
    "FixedPoint",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "RandomizedNeumann",
]
