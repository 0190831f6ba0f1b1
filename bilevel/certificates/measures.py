"""Distances from what a solution would satisfy, each a plain function that can be jitted.

A measure that a problem's structure leaves without meaning is NaN, never a wrong number: the
implicit formula needs a free lower variable that minimises a loss, and the lower measures need
`∇_y g` and, where there is a `lower_set`, its projection.
"""

import jax.numpy as jnp

from bilevel import hypergrad, oracles, sets, trees
from bilevel.linear import CG, AbstractLinear
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.lower.solvers import residual
from bilevel.problem import Batch, Problem
from bilevel.typing import Data, Lower, Scalar, ScalarLike, Upper


def hypergradient_norm(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    solver: AbstractLowerSolver | None = None,
    linear: AbstractLinear | None = None,
) -> Scalar:
    """Norm of the hypergradient of `x → f(x, y*(x))`, at a lower solution found from y0.

    Uses the closed form a problem declares, else the implicit formula. Exact when both solves
    are; the error grows linearly with their residuals, which `certify` reports.

    Args:
        x: upper variable.
        y0: where the lower solver starts.
        batch: `Batch(upper, lower)`; hand it all data to measure the whole problem.
        solver: for the lower problem; `ToTolerance()` when absent.
        linear: for the adjoint system; `CG(100)` when absent.

    Returns:
        A scalar; NaN when the implicit formula does not hold (a `lower_set` or a `lower_step`
        without a closed form) or the lower problem cannot be solved here.
    """
    if not (has_hypergradient(problem) and is_solvable(problem)):
        return unknown(x, y0)
    y = (solver or ToTolerance()).solve(problem, x, y0, batch.lower).y
    return trees.norm(hypergradient(problem, x, y, batch, linear).grad)


def projected_gradient_residual(
    problem: Problem, x: Upper, grad: Upper, step_size: ScalarLike = 1.0
) -> Scalar:
    """`‖x − P_X(x − a grad)‖/a`: how far x is from stationary on the upper set.

    Zero exactly at stationary points, and the gradient norm when the upper set is `Free`. With a
    set, rounding hides what is below `eps ‖x‖/a` (eps of the dtype of x).

    Args:
        grad: the hypergradient at x, shaped like x.
        step_size: a, positive.

    Raises:
        NotImplementedError: the upper set has no projection.
    """
    if isinstance(problem.upper_set, sets.Free):
        return trees.norm(grad)
    moved = problem.upper_set.project(trees.axpy(-jnp.asarray(step_size), grad, x))
    distance = trees.norm(trees.sub(x, moved))
    return distance / jnp.asarray(step_size, distance.dtype)


def tracking_error(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    solver: AbstractLowerSolver | None = None,
) -> Scalar:
    """`‖y − y*(x)‖`, with `y*(x)` solved from y.

    With a μ-strongly convex lower loss it is off by at most the solver's residual over μ. NaN
    when the lower problem cannot be solved by (projected) gradients.

    Args:
        solver: `ToTolerance()` when absent.
    """
    if not is_solvable(problem):
        return unknown(x, y)
    solved = (solver or ToTolerance()).solve(problem, x, y, batch.lower).y
    return trees.norm(trees.sub(y, solved))


def lower_residual(problem: Problem, x: Upper, y: Lower, batch: Data = None) -> Scalar:
    """`‖∇_y g‖`, or `‖y − P_Y(y − ∇_y g)‖` with a lower set.

    NaN when the problem declares its own `lower_step`, or a lower set without a projection.

    Args:
        batch: handed to the lower loss.
    """
    return residual(problem, x, y, batch) if is_solvable(problem) else unknown(x, y)


def adjoint_residual(
    problem: Problem, x: Upper, y: Lower, v: Lower, batch: Batch = Batch()
) -> Scalar:
    """`‖H v − ∇_y f‖` with `H = ∂²g/∂y²`, all at (x, y)."""
    f_y = oracles.upper_grad_y(problem, x, y, batch.upper)
    return trees.norm(trees.sub(oracles.hvp(problem, x, y, v, batch.lower), f_y))


# --- what a problem allows -----------------------------------------------------------------


def is_solvable(problem: Problem) -> bool:
    """Whether (projected) gradient steps solve the lower problem."""
    return problem.lower_step is None and problem.lower_set.projectable


def has_hypergradient(problem: Problem) -> bool:
    """Whether a hypergradient is known: in closed form, or by the implicit formula."""
    return problem.hypergradient is not None or is_implicit(problem)


def is_implicit(problem: Problem) -> bool:
    """Whether the implicit formula holds: y is free, and a minimiser."""
    return problem.lower_step is None and isinstance(problem.lower_set, sets.Free)


def hypergradient(
    problem: Problem, x: Upper, y: Lower, batch: Batch, linear: AbstractLinear | None
) -> hypergrad.HyperGrad:
    """The best hypergradient available at (x, y)."""
    if problem.hypergradient is not None:
        return hypergrad.closed_form_or_implicit(problem, x, y, batch)
    return hypergrad.implicit(problem, x, y, batch, linear=linear or CG(100))


def unknown(x: Upper, y: Lower) -> Scalar:
    """NaN, in the dtype a norm would have."""
    return jnp.full((), jnp.nan, trees.widest((x, y)))
