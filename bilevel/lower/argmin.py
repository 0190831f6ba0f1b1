"""The lower solution as a differentiable function of the upper variable."""

import jax

from bilevel import oracles, trees
from bilevel.linear import CG, AbstractLinear
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.problem import Problem, Same
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

    Reference: Blondel et al. "Efficient and modular implicit differentiation". NeurIPS 2022,
    arXiv:2105.15183.
    """
    solver = ToTolerance() if solver is None else solver
    linear = CG(100) if linear is None else linear

    fixed = jax.lax.stop_gradient((problem, x, batch))
    y = jax.lax.stop_gradient(solver.solve(fixed[0], fixed[1], y0, fixed[2]).y)
    hvp = oracles.hessian(fixed[0], fixed[1], y, Same(fixed[2]))
    # Zero in value; its derivative is ∂g_y/∂x, from which the solve below makes −dy*/dx.
    g_y = oracles.lower_grad(problem, x, y, batch)
    g_y = trees.sub(g_y, jax.lax.stop_gradient(g_y))
    moved = jax.lax.custom_linear_solve(
        hvp, g_y, lambda operator, b: linear.solve(lambda v, i: operator(v), b), symmetric=True
    )
    return trees.sub(y, moved)
