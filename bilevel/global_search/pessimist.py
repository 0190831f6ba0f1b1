"""The pessimistic version of a small problem: of equal answers the follower takes the worst.

`min over x of max {f(x, y): y in S(x)}`, S(x) the minimisers of `g(x, ·)`. A follower that
minimises `g − ε f` instead, and ends at an answer of g, has taken the worst of them: for any other
y' in S(x), g is the same, so `f(x, y) >= f(x, y')`. So the problem with `g − ε f` is searched as it
is, and the point is checked with g. (A minimum that is only approached, as at a jump of y*, is met
to the order of ε.)
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from bilevel.driver.result import Outcome, Result, Status
from bilevel.global_search.candidates import CHECKS, measured
from bilevel.global_search.follower import Follower
from bilevel.global_search.functions import UPPER, Functions
from bilevel.global_search.rays import lower_fall
from bilevel.global_search.region import Region
from bilevel.global_search.solve import DIFFERS, certificate_of, solve_small, verdict
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper

EPSILON = 1e-4  # times the size of g over that of f at the start


class _Against(eqx.Module):
    """`g − share · f`."""

    lower: Any
    upper: Any
    share: Array
    batch: Any  # of the upper loss

    def __call__(self, x, y, batch):
        g = self.lower(x, y, batch)
        return g - self.share.astype(jnp.result_type(g)) * self.upper(x, y, self.batch)


def solve_pessimistic(
    problem: Problem, x0: Upper, y0: Lower, batch: Batch = Batch(), *, why: str
) -> Result:
    """As `solve_small`, for the worst of the follower's answers.

    The certificate's `upper` is the pessimistic value, and `optimistic` that of the best answer to
    the same x, where it is another.
    """
    sizes = (
        1 + abs(float(loss(x0, y0, part)))
        for loss, part in ((problem.upper, batch.upper), (problem.lower, batch.lower))
    )
    f, g = sizes
    against = _Against(problem.lower, problem.upper, jnp.asarray(EPSILON * g / f), batch.upper)
    found = solve_small(problem.replace(lower=against), x0, y0, batch, why=why)
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
