"""The lower minimiser that is best for the upper loss, where there are many."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, nonnegative
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar


class Selected(NamedTuple):
    """A point near the optimistic lower solution."""

    y: Lower
    value: Scalar  # f(x, y), near the optimistic hyper-objective


class BiGSAM(eqx.Module):
    """Sequential averaging of an upper and a lower gradient step, at a fixed x.

    `y ← a_k (y − s ∇_y f) + (1 − a_k) P_Y(y − t ∇_y g)` with `a_k = min(weight/k, 1)`, k = 1, 2, …,
    goes to the least f(x, ·) among the minimisers of g(x, ·): f strongly convex in y and g convex.
    The gap of g falls like `O(1/k)`. One gradient of each level a step; differentiable.

    Attributes:
        lower_step: t, at most `1/L_g`.
        upper_step: s, at most `2/(L_f + μ_f)`.
        weight: `2γ/(1 − β)` of the paper, `β = √(1 − 2 s μ_f L_f/(μ_f + L_f))`, with any γ in
            (0, 1]; 2 or more is needed for γ = 1 only.
        steps: how many.

    Reference: Sabach, Shtern. "A first order method for solving convex bilevel optimization
    problems". SIAM J. Optim. 27(2), 2017, arXiv:1702.03999. Recalled, not checked against the text.
    """

    lower_step: ScalarLike = nonnegative(0.1)
    upper_step: ScalarLike = nonnegative(0.1)
    weight: ScalarLike = nonnegative(2.0)
    steps: int = count(1000)

    def solve(self, problem: Problem, x, y0: Lower, batch: Batch = Batch()) -> Selected:
        """The point reached from y0, and the upper loss there.

        Args:
            batch: `Batch(upper, lower)`; each half is handed to its loss untouched.
        """
        y0 = trees.copy(y0)
        weight = jnp.asarray(self.weight, trees.widest(y0))

        def body(y, k):
            f_y = oracles.upper_grad_y(problem, x, y, batch.upper)
            g_y = oracles.lower_grad(problem, x, y, batch.lower)
            u = problem.lower_set.project(trees.axpy(-jnp.asarray(self.lower_step), g_y, y), x)
            w = trees.axpy(-jnp.asarray(self.upper_step), f_y, y)
            return trees.lerp(u, w, jnp.minimum(weight / k.astype(weight.dtype), 1)), None

        y, _ = jax.lax.scan(body, y0, jnp.arange(1, self.steps + 1))
        return Selected(y, oracles.upper_value(problem, x, y, batch.upper))
