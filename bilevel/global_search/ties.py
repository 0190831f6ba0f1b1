"""The worst of the follower's equal answers.

A follower that minimises `g − ε f` instead of g, and ends at an answer of g, has taken the worst of
them for the leader: for any other y' in the minimisers of g, g is the same, so
`f(x, y) >= f(x, y')`.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from bilevel.driver.answer import FEASIBLE, GAP
from bilevel.global_search.candidates import CHECKS, Candidate
from bilevel.global_search.follower import Follower
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.region import Region
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


def against(problem: Problem, x: Upper, y: Lower, batch: Batch) -> Problem:
    """The problem whose follower minimises `g − ε f`, ε by the sizes of the losses at (x, y)."""
    f = 1 + abs(float(problem.upper(x, y, batch.upper)))
    g = 1 + abs(float(problem.lower(x, y, batch.lower)))
    lower = _Against(problem.lower, problem.upper, jnp.asarray(EPSILON * g / f), batch.upper)
    return problem.replace(lower=lower)


def worst_answer(
    problem: Problem, functions: Functions, at: Candidate, x: Upper, y: Lower, batch: Batch
) -> float:
    """The largest upper loss among the answers to x that were found, as `functions` divides it."""
    tilted = Functions(against(problem, x, y, batch), x, y, batch)
    n = functions.n
    z = Follower(tilted, Region(tilted)).respond(at.z[None, :n], CHECKS, at.z[None, None, n:]).z
    c = functions.values(z)
    _, violation = functions.violations(c)
    equal = c[0, LOWER] - at.best <= GAP * at.scale and violation[0] <= FEASIBLE
    return max(at.worst, float(c[0, UPPER])) if equal else at.worst
