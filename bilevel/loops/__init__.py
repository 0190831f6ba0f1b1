"""The loops that families of methods share; a method is a loop with its blocks chosen."""

from bilevel.loops.nested import Nested, NestedState
from bilevel.loops.penalty import Pair, descend_pair

__all__ = ["Nested", "NestedState", "Pair", "descend_pair"]
