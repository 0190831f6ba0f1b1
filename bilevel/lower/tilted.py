"""A linear term in the lower loss, drawn at random: it makes kinks of y* a matter of bad luck."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import ScalarLike

from bilevel import trees
from bilevel.problem import Problem
from bilevel.typing import Lower


class Tilted(eqx.Module):
    """The lower loss `g + qᵀy`."""

    lower: Any
    q: Lower

    def __call__(self, x, y, batch):
        g = self.lower(x, y, batch)
        return g + trees.dot(self.q, y).astype(g.dtype)


def tilted(problem: Problem, q: Lower) -> Problem:
    """The problem with the lower loss `g + qᵀy`; q is shaped like y.

    With q from a continuous distribution, strict complementarity holds at any given x with
    probability one (active rows being independent), so that the hyper-objective l_q is
    differentiable there. With g μ-strongly convex and f L_f-Lipschitz in y,
    `|l_q − l| ≤ L_f ‖q‖/μ`.
    """
    return problem.replace(lower=Tilted(problem.lower, q))


def tilt(key: jax.Array, y: Lower, deviation: ScalarLike) -> Lower:
    """A Gaussian q shaped like y, of standard deviation `deviation` in every entry."""
    return trees.scale(deviation, trees.random_like(key, y))
