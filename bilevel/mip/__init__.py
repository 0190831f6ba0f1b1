"""Linear and convex-quadratic bilevel programs with integers, solved to a proven gap by HiGHS.

    program = mip.Program(cost=..., rows=..., follower=..., follower_cost=...)
    answer = mip.solve(program)
    answer.value, answer.bound, answer.gap

A continuous follower is replaced by its optimality conditions; "one of each pair is zero" is left
to HiGHS where bounds on both of the pair are proved, and branched on where they are not. An integer
follower is met with cuts from its own answers. Every answer is checked by solving the follower.
"""

from bilevel.mip.answer import Answer, Ending
from bilevel.mip.program import INF, Program
from bilevel.mip.solve import follower_best, solve

__all__ = ["INF", "Answer", "Ending", "Program", "follower_best", "solve"]
