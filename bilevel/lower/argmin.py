"""The lower solution as a differentiable function of the upper variable."""

import jax

from bilevel import oracles, trees
from bilevel.linear import CG, AbstractLinear
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.problem import Problem
from bilevel.sets import Free
from bilevel.typing import Lower


def argmin(
    problem: Problem,
    x,
    y0: Lower,
    batch=None,
    *,
    solver: AbstractLowerSolver | None = None,
    linear: AbstractLinear | None = None,
) -> Lower:
    """`y*(x)`, differentiable in x, in the batch and in whatever the problem carries.

    Derivatives of any order; those of second order differentiate the first.

    The solver finds the point; derivatives come from the implicit function theorem at that
    point, `dy*/dx = −(∂²g/∂y²)⁻¹ ∂²g/∂y∂x`, in forward and in reverse mode, whatever the solver
    did. Their error grows linearly with the residuals of both solves.

    Args:
        problem: its lower loss should be strongly convex in y, with no `lower_set`.
        x: upper variable.
        y0: where the solver starts; gives y its structure and does not affect derivatives.
        batch: handed to the lower loss.
        solver: `ToTolerance()` when absent; any solver of `bilevel.lower`.
        linear: for the derivative's system; `CG(100)` when absent.

    Returns:
        A tree like y0.

    Raises:
        ValueError: the problem has a `lower_set`.

    Reference: Blondel et al. "Efficient and modular implicit differentiation". NeurIPS 2022,
    arXiv:2105.15183.
    """
    if not isinstance(problem.lower_set, Free):
        raise ValueError(
            f"argmin differentiates an unconstrained minimiser, and lower_set is a "
            f"{type(problem.lower_set).__name__}: where it is active the derivative differs. Leave "
            "lower_set out where it never is, or differentiate the steps of lower.Gradient."
        )
    solver = ToTolerance() if solver is None else solver
    linear = CG(100) if linear is None else linear

    def stationary(y):
        return oracles.lower_grad(problem, x, y, batch)

    def find(_, y):
        return solver.solve(problem, x, y, batch).y

    def solve_tangent(hvp, b):
        return jax.lax.custom_linear_solve(
            hvp, b, lambda hvp, b: linear.solve(lambda v, i: hvp(v), b), symmetric=True
        )

    return jax.lax.custom_root(stationary, trees.copy(y0), find, solve_tangent)
