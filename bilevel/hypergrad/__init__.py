"""Hypergradients as plain functions: each usable alone, in a loop of your own."""

from bilevel.hypergrad.implicit import closed_form_or_implicit, implicit, neumann
from bilevel.hypergrad.one_step import one_step
from bilevel.hypergrad.result import HyperGrad
from bilevel.hypergrad.unrolled import unrolled
from bilevel.hypergrad.value_difference import value_difference, value_difference_at

__all__ = [
    "HyperGrad",
    "closed_form_or_implicit",
    "implicit",
    "neumann",
    "one_step",
    "unrolled",
    "value_difference",
    "value_difference_at",
]
