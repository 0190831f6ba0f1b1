"""The pessimistic version of a small problem: of equal answers the follower takes the worst.

`min over x of max {f(x, y): y in S(x)}`, S(x) the minimisers of `g(x, ·)`. The problem with
`g − ε f` for g is searched as it is (`ties.against`), and the point is checked with g. (A minimum
that is only approached, as at a jump of y*, is met to the order of ε.)
"""

from typing import Any

import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel.driver.result import Outcome, Result, Status
from bilevel.global_search.candidates import CHECKS, measured
from bilevel.global_search.follower import Follower
from bilevel.global_search.functions import UPPER, Functions
from bilevel.global_search.rays import lower_fall
from bilevel.global_search.region import Region
from bilevel.global_search.solve import DIFFERS, certificate_of, solve_small, verdict
from bilevel.global_search.ties import against
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper


def solve_pessimistic(
    problem: Problem, x0: Upper, y0: Lower, batch: Batch = Batch(), *, why: str
) -> Result:
    """As `solve_small`, for the worst of the follower's answers.

    The certificate's `upper` is the pessimistic value, and `optimistic` that of the best answer to
    the same x, where it is another.
    """
    found = solve_small(against(problem, x0, y0, batch), x0, y0, batch, why=why)
    searched: Any = found.certificate

    functions = Functions(problem, found.x, found.y, batch)
    follower = Follower(functions, Region(functions))
    z, n = np.asarray(ravel_pytree((found.x, found.y))[0], float), functions.n
    at = measured(functions, follower, z)
    if at.passes():
        at = at._replace(falls=lower_fall(functions, follower.region, z))
    liked = follower.respond(z[None, :n], CHECKS, z[None, None, n:]).c[0, UPPER]
    unit = float(functions.units[UPPER])
    differs = at.upper - liked > DIFFERS * (1 / unit + abs(at.upper))
    proof = certificate_of(functions, at, found.x, found.y)._replace(
        stationary=searched.stationary,
        candidates=searched.candidates,
        upper_falls=searched.upper_falls,
        traps=searched.traps,
        optimistic=float(liked) * unit if differs and at.passes() else None,
    )
    outcome, words = verdict(proof)
    if proof.pessimistic is not None:  # an answer of the follower's that is worse than y
        outcome = Outcome.STALLED if outcome is Outcome.CONVERGED else outcome
        words = f"{words} y is not the worst of the answers."
    return found._replace(certificate=proof, status=Status(outcome, f"{why}. {words}"))
