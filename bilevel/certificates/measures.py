"""Distances from what a solution would satisfy, each a plain function that can be jitted.

A measure that a problem's structure leaves without meaning is NaN, never a wrong number: the
implicit formula needs a lower variable that minimises a loss, and where that is constrained a dense
system; the lower measures need `∇_y g` and, where there is a `lower_set`, its projection.
"""

import importlib.util

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from bilevel import hypergrad, lower, oracles, sets, trees
from bilevel.certificates.spectrum import DENSE_UP_TO
from bilevel.linear import CG, AbstractLinear
from bilevel.lower import (
    SQP,
    AbstractLowerSolver,
    Accelerated,
    Gradient,
    LowerSolution,
    ToTolerance,
)
from bilevel.lower.solvers import residual
from bilevel.problem import Batch, Problem
from bilevel.typing import Data, Lower, Scalar, ScalarLike, Upper

FEASIBLE = 1e-3  # times 1 + max |x|, |y|: largest violation of a constraint
PROJECTING = (Gradient, Accelerated, ToTolerance)  # solvers that call lower_set.project


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

    Uses the closed form a problem declares, else the implicit formula, which goes through the
    active set where there is a `lower_set`. Exact when both solves are; the error grows linearly
    with their residuals, which `certify` reports.

    Args:
        x: upper variable.
        y0: where the lower solver starts.
        batch: `Batch(upper, lower)`; hand it all data to measure the whole problem.
        solver: for the lower problem; when absent `ToTolerance()`, or `SQP()` where the lower set
            has no simple projection.
        linear: for the adjoint system of a free y; `CG(100)` when absent.

    Returns:
        A scalar; NaN when the implicit formula does not hold (a `lower_step` without a closed form,
        or a `lower_set` that holds more than a few hundred entries) or the lower problem cannot be
        solved here.
    """
    return trees.norm(solved_hypergradient(problem, x, y0, batch, solver, linear).grad)


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


def violation(problem: Problem, x: Upper, y: Lower) -> Scalar:
    """The largest amount by which x or y violates a constraint of its set; 0 inside both.

    In the units of the constraint: a bound, a row `A z - b`, a component of `h(x, y)`.
    """
    dtype = trees.widest((x, y))
    worst = jnp.zeros((), dtype)
    upper = problem.upper_set
    members = upper.sets if isinstance(upper, sets.Intersection) else (upper,)
    found = [m.constraints(y, x) if m.moves else m.constraints(x) for m in members]
    for inequalities, equalities in (*found, problem.lower_set.constraints(y, x)):
        for leaf in jax.tree.leaves((inequalities, trees.map(jnp.abs, equalities))):
            worst = jnp.maximum(worst, jnp.max(leaf, initial=-jnp.inf).astype(dtype))
    return worst


def feasible(problem: Problem, x: Upper, y: Lower) -> tuple[Scalar, Bool[Array, ""]]:
    """The violation, and whether it is at most 1e-3 times `1 + max |x|, |y|`."""
    worst = violation(problem, x, y)
    return worst, worst <= FEASIBLE * (1 + trees.largest((x, y)).astype(worst.dtype))


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


def can_solve(problem: Problem, y: Lower, solver: AbstractLowerSolver | None = None) -> bool:
    """Whether some solver here finds the lower solution: by projections, or by programs."""
    if problem.lower_step is not None:
        return False
    finds = not (solver is None or isinstance(solver, PROJECTING))
    return problem.lower_set.projectable or finds or (is_small(y) and _has_programs())


def solve(
    problem: Problem, x: Upper, y0: Lower, batch, solver: AbstractLowerSolver | None = None
) -> LowerSolution:
    """The lower solution from y0, by the given solver or by the one that suits the lower set."""
    if isinstance(solver, PROJECTING) and not problem.lower_set.projectable:
        solver = None
    if solver is None:
        projects = is_simple(problem) or not (is_small(y0) and _has_programs())
        solver = ToTolerance() if projects else SQP()
    return solver.solve(problem, x, y0, batch)


def duals_of(found: LowerSolution) -> lower.Duals | None:
    """The multipliers that came with a lower solution, where its solver finds them."""
    return getattr(found, "duals", None)


def solved_hypergradient(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch,
    solver: AbstractLowerSolver | None = None,
    linear: AbstractLinear | None = None,
) -> hypergrad.HyperGrad:
    """The hypergradient by the best known formula, at the lower solution found from y0.

    It is NaN where no formula applies. In what is returned, `y` is the lower solution and
    `lower_grad_norm` its residual.
    """
    if not (has_hypergradient(problem, y0) and can_solve(problem, y0, solver)):
        nan = unknown(x, y0)
        grad = trees.map(lambda leaf: jnp.full_like(leaf, jnp.nan), x)
        return hypergrad.HyperGrad(nan, grad, lower_grad_norm=nan, y=y0)
    found = solve(problem, x, y0, batch.lower, solver)
    h = hypergradient(problem, x, found.y, batch, linear, duals_of(found))
    return h._replace(lower_grad_norm=found.residual, y=found.y)


def has_hypergradient(problem: Problem, y: Lower) -> bool:
    """Whether a hypergradient is known: in closed form, or by an implicit formula."""
    return problem.hypergradient is not None or is_implicit(problem) or is_on_face(problem, y)


def is_on_face(problem: Problem, y: Lower) -> bool:
    """Whether the implicit formula holds along the active face: y minimises, and is not large."""
    return problem.lower_step is None and not is_implicit(problem) and is_small(y)


def is_small(y: Lower) -> bool:
    return trees.size(y) <= DENSE_UP_TO


def is_simple(problem: Problem) -> bool:
    """Whether the projection on the lower set is cheap."""
    return problem.lower_set.simple


def _has_programs() -> bool:
    return importlib.util.find_spec("qpax") is not None


def is_implicit(problem: Problem) -> bool:
    """Whether the implicit formula holds: y is free, and a minimiser."""
    return problem.lower_step is None and isinstance(problem.lower_set, sets.Free)


def hypergradient(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch,
    linear: AbstractLinear | None = None,
    duals: lower.Duals | None = None,
) -> hypergrad.HyperGrad:
    """The best hypergradient available at (x, y)."""
    if problem.hypergradient is not None:
        return hypergrad.closed_form_or_implicit(problem, x, y, batch)
    if not is_implicit(problem):
        duals = lower.duals_at(problem, x, y, batch.lower) if duals is None else duals
        return hypergrad.kkt(problem, x, y, duals, batch)
    return hypergrad.implicit(problem, x, y, batch, linear=linear or CG(100))


def unknown(x: Upper, y: Lower) -> Scalar:
    """NaN, in the dtype a norm would have."""
    return jnp.full((), jnp.nan, trees.widest((x, y)))
