"""`solve`: the search that a program needs."""

import time

import numpy as np

from bilevel.mip import cuts, search
from bilevel.mip.answer import Answer
from bilevel.mip.follower import follower_best as follower_best
from bilevel.mip.program import Program


def solve(
    program: Program, *, nodes: int = 10_000, big_m: float | None = None, seconds: float = np.inf
) -> Answer:
    """The best point of a bilevel program, with a proven bound.

    Args:
        nodes: how many programs HiGHS may solve.
        big_m: a guess of a bound on multipliers and slacks, from which a first point is found. It
            proves nothing; `answer.big_m_fails` tells whether it would have cut the best point off.
        seconds: after which the search ends with what it has, where the follower has no whole
            numbers.

    Returns:
        `Answer`. `answer.ending` is `OPTIMAL` where the gap is closed, to 1e-7.

    Raises:
        ImportError: highspy is not installed: `pip install 'bilevel[mip]'`.
        ValueError: the follower has whole numbers, and a loss is quadratic or x is not whole where
            the follower sees it.
    """
    if np.any(program.integer & program.follower):
        return cuts.search(program, nodes=nodes)
    return search.search(program, nodes=nodes, big_m=big_m, until=time.monotonic() + seconds)
