"""A first-order hypergradient of a lower problem under inequalities, by two penalties."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.lower import SQP, AbstractLowerSolver, kkt
from bilevel.lower.kkt import Duals
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, Upper


class Penalised(eqx.Module):
    """`a² f + g + λᵀh + νᵀe + ‖(h_I, e)‖²/(2a²)`, on a `Batch`: the paper's Lagrangian times a²."""

    problem: Problem
    duals: Duals
    active: Array
    a: Array

    def __call__(self, x, y, batch: Batch) -> Scalar:
        f = self.problem.upper(x, y, batch.upper)
        g = self.problem.lower(x, y, batch.lower)
        pulls = kkt.weighed(self.problem, x, y, self.duals)
        walls = _squares(self.problem, x, y, self.active) / (2 * self.a**2)
        return (self.a**2).astype(f.dtype) * f + g.astype(f.dtype) + (pulls + walls).astype(f.dtype)


def two_penalty(
    problem: Problem,
    x: Upper,
    y: Lower,
    duals: Duals,
    active: Array,
    batch: Batch = Batch(),
    *,
    accuracy: ScalarLike = 0.03,
    inner: AbstractLowerSolver | None = None,
) -> HyperGrad:
    """Hypergradient from the minimiser of a Lagrangian with two penalties, at a lower solution.

    With a the accuracy, `a₁ = a⁻²`, `a₂ = a⁻⁴`, multipliers λ and the active set I held fixed,

        y' = argmin over y of f(x, y) + a₁ (g + λᵀh − v(x)) + (a₂/2) ‖h_I‖²

    without constraints, and the result is the derivative in x of the same expression at y', where
    `v'(x) = ∇_x (g + λᵀh)(x, y*)`. Equations count as active. Uses only first derivatives, apart
    from those that `inner` takes. For strongly convex g, convex h(x, ·), independent active rows
    and exact multipliers the error is `O(a)`; for linear constraints `O(a²)` is observed, at points
    where active multipliers are positive. The condition number of the inner problem is of order
    a⁻²: below an accuracy of 0.01 the error stops falling, and the error of λ must be at most a²
    times the wanted error.

    Args:
        y, duals, active: lower solution, its multipliers and active inequalities, from `lower.SQP`.
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        accuracy: a.
        inner: solver for y'; if `None`, `lower.SQP()`, which is Newton's method without
            constraints. `lower.ToTolerance()` uses only first derivatives.

    Returns:
        `HyperGrad(value, grad, y=y)`; value is f at y.

    Reference: Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly
    constrained bilevel optimization". NeurIPS 2024, arXiv:2406.12771.
    """
    inner = SQP() if inner is None else inner
    a = jnp.asarray(accuracy, trees.widest(y))
    penalised = Penalised(problem, duals, active, a)
    near = inner.solve(problem.replace(lower=penalised, lower_set=None), x, y, batch).y
    value = oracles.upper_value(problem, x, y, batch.upper)
    _, f_x = oracles.upper_grad_x(problem, x, near, batch.upper)
    g_near = oracles.lower_grad_x(problem, x, near, batch.lower)
    g_star = oracles.lower_grad_x(problem, x, y, batch.lower)
    grad = trees.axpy(a**-2, trees.sub(g_near, g_star), f_x)
    if problem.lower_set.moves:

        def forces(x):
            gap = kkt.weighed(problem, x, near, duals) - kkt.weighed(problem, x, y, duals)
            return gap / a**2 + _squares(problem, x, near, active) / (2 * a**4)

        grad = trees.add(grad, jax.grad(forces)(x))
    return HyperGrad(value, grad, y=y)


def _squares(problem: Problem, x: Upper, y: Lower, active: Array) -> Scalar:
    """`‖h_I‖² + ‖e‖²`."""
    h, e = kkt.constraints(problem, x, y)
    return jnp.sum(jnp.where(active, h, 0) ** 2) + jnp.sum(e**2)
