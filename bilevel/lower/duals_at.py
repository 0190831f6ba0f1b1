"""Multipliers of constraints at a point whose solver told none."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import oracles, sets, trees
from bilevel.lower.kkt import NEVER, Duals, Face, face
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.problem import Problem
from bilevel.typing import Lower, Upper


def duals_at(
    problem: Problem, x: Upper, y: Lower, batch=None, *, solver: AbstractLowerSolver | None = None
) -> Duals:
    """The multipliers that come nearest to making y a lower KKT point: `λ ≥ 0` and ν with least
    `‖∇_y g + (∂h/∂y)ᵀ λ + (∂e/∂y)ᵀ ν‖² + Σ (λ_i h_i)²`.

    At a solution they are its multipliers, where the active rows are independent. One lower
    gradient.

    Args:
        solver: of this least-squares problem; `ToTolerance(1e-10)` when absent.
    """
    if isinstance(problem.lower_set, sets.Free):
        none = jnp.zeros(0, trees.widest(y))
        return Duals(none, none)
    force, _ = trees.ravel(oracles.lower_grad(problem, x, y, batch))
    return balancing(force, face(problem, x, y), solver)


def balancing(
    force: Float[Array, " m"], at: Face, solver: AbstractLowerSolver | None = None
) -> Duals:
    """`λ ≥ 0` and ν with least `‖force + Aᵀ λ + Eᵀ ν‖² + Σ (λ_i h_i)²`."""
    h, A, e, E = at
    on = h > -NEVER / 2  # a side without a bound has no multiplier

    def distance(_, duals, __):
        balance = force + A.T @ duals.inequalities + E.T @ duals.equalities
        slack = jnp.where(on, h, 1) * duals.inequalities
        return (balance @ balance + slack @ slack) / 2

    start = Duals(jnp.zeros_like(h), jnp.zeros_like(e))
    bounds = sets.Box(Duals(jnp.zeros(()), -jnp.full((), jnp.inf)), jnp.inf)
    least = Problem(lambda _, duals, __: jnp.zeros(()), distance, lower_set=bounds)
    with oracles.uncounted():
        return (solver or ToTolerance(1e-10)).solve(least, force, start).y
