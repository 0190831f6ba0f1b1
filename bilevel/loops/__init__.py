"""The loops that families of methods share; a method is a loop with its blocks chosen."""

from bilevel.loops.nested import NestedState, nested_draws, nested_init, nested_price, nested_step
from bilevel.loops.penalty import Pair, descend_pair

__all__ = [
    "NestedState",
    "Pair",
    "descend_pair",
    "nested_draws",
    "nested_init",
    "nested_price",
    "nested_step",
]
