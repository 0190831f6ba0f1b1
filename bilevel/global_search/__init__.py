"""Small problems with any constraints: a global search, and a check of the follower's answer."""

from bilevel.global_search.functions import double_precision
from bilevel.global_search.pessimist import solve_pessimistic
from bilevel.global_search.solve import check_small, solve_small, verdict

__all__ = ["check_small", "double_precision", "solve_pessimistic", "solve_small", "verdict"]
