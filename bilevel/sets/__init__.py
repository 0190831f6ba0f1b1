"""Closed sets for the upper and the lower variable: nearest points, and how far outside a point is.

Sets work on any pytree of floating arrays and are pytrees themselves: their numbers are leaves, so
a new bound recompiles nothing and a family of sets is one `vmap`.
"""

from bilevel.sets.base import AbstractSet, Constraints, Rows, Traits, as_pytree
from bilevel.sets.combined import Coupled, Intersection, Split, split
from bilevel.sets.linear import Affine, Polyhedron
from bilevel.sets.simple import Ball, Box, CappedSimplex, Free, Simplex

__all__ = [
    "AbstractSet",
    "Affine",
    "Ball",
    "Box",
    "CappedSimplex",
    "Constraints",
    "Coupled",
    "Free",
    "Intersection",
    "Polyhedron",
    "Rows",
    "Simplex",
    "Split",
    "Traits",
    "as_pytree",
    "split",
]
