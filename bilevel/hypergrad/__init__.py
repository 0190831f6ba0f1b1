"""Hypergradients as plain functions, which can be used in your own training loop."""

from bilevel.hypergrad.barrier import barrier
from bilevel.hypergrad.best_response import best_response
from bilevel.hypergrad.from_matrices import Curvature, curvature, from_matrices
from bilevel.hypergrad.implicit import closed_form_or_implicit, implicit, neumann
from bilevel.hypergrad.kkt import kkt
from bilevel.hypergrad.null_space import lagrangian_difference, null_space
from bilevel.hypergrad.one_step import one_step
from bilevel.hypergrad.result import HyperGrad
from bilevel.hypergrad.selection import (
    AbstractSelection,
    PenalisedSelection,
    Selected,
    SwitchingGradient,
)
from bilevel.hypergrad.solved import AbstractOracle, ActiveSet, TwoPenalty, TwoPoint
from bilevel.hypergrad.superquantile import Tail, superquantile, tail
from bilevel.hypergrad.two_penalty import two_penalty
from bilevel.hypergrad.two_point import sphere, two_point
from bilevel.hypergrad.unrolled import unrolled
from bilevel.hypergrad.value_difference import (
    differences,
    value_difference,
    value_difference_at,
    value_slopes,
    weigh_slopes,
)

__all__ = [
    "AbstractOracle",
    "AbstractSelection",
    "ActiveSet",
    "Curvature",
    "HyperGrad",
    "PenalisedSelection",
    "Selected",
    "SwitchingGradient",
    "Tail",
    "TwoPenalty",
    "TwoPoint",
    "barrier",
    "best_response",
    "closed_form_or_implicit",
    "curvature",
    "differences",
    "from_matrices",
    "implicit",
    "kkt",
    "lagrangian_difference",
    "neumann",
    "null_space",
    "one_step",
    "sphere",
    "superquantile",
    "tail",
    "two_penalty",
    "two_point",
    "unrolled",
    "value_difference",
    "value_difference_at",
    "value_slopes",
    "weigh_slopes",
]
