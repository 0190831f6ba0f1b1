"""The lower solution as a differentiable function of the upper variable."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from bilevel import oracles, trees
from bilevel.linear import CG, AbstractLinear, matrices
from bilevel.lower import kkt
from bilevel.lower.kkt import Duals
from bilevel.lower.solvers import AbstractLowerSolver, LowerSolution, ToTolerance
from bilevel.lower.sqp import SQP
from bilevel.problem import Problem, RepeatedBatch, Structure
from bilevel.sets import Free
from bilevel.typing import Lower, Scalar


def argmin(
    problem: Problem | Callable[..., Scalar],
    x,
    y0: Lower,
    batch=None,
    *,
    solver: AbstractLowerSolver | None = None,
    linear: AbstractLinear | None = None,
    throw: bool = False,
    return_residual: bool = False,
) -> Lower | tuple[Lower, Scalar]:
    """`y*(x)`, differentiable in x, in the batch and in whatever the problem carries.

    Derivatives of any order; those of second order differentiate the first.

    The solver finds the point; derivatives come from the implicit function theorem at that
    point, in forward and in reverse mode, whatever the solver did. Their error grows linearly with
    the residuals of both solves. What is differentiated depends on the `lower_set`:

    - without one, `∇_y g(x, y) = 0`: `dy*/dx = −(∂²g/∂y²)⁻¹ ∂²g/∂y∂x`;
    - with a projection P, and a solver that uses it, `y = P(y − ∇_y g(x, y))`, by products with
      the Hessian and the derivative of P alone: for a y of any size;
    - with any other, linear in y or convex, moving with x or not, the KKT system of the active
      constraints, as a dense matrix (`bilevel.lower.kkt`); the solver has to find multipliers.

    With constraints the derivative is that of y* where every active multiplier is positive, and
    active constraints are independent; elsewhere, at a kink, it is that of one side.

    Args:
        problem: its lower loss should be strongly convex in y. Or that loss alone, a function
            `g(x, y)`, or `g(x, y, batch)` with a batch; what it closes over is held fixed.
        x: upper variable.
        y0: where the solver starts; gives y its structure and does not affect derivatives.
        batch: handed to the lower loss.
        solver: any solver of `bilevel.lower`. When absent, `ToTolerance()` for free variables and
            simple projections (a fixed box, ball, simplex, affine set), `SQP()` for other sets.
        linear: for the derivative's system, where there is no KKT system; `CG(100)` when absent.
            With a projection the system is singular where constraints are active, which conjugate
            gradients do not mind if they have a tolerance: `CG(100, 1e-12)`.
        throw: raise an error, in place of a warning, where the solver missed its tolerance.
        return_residual: return the solver's residual, too.

    Returns:
        A tree like y0; with `return_residual`, that and a scalar.

    Raises:
        TypeError: `problem` is neither a problem nor a function.
        ValueError: the `lower_set` has no projection and the solver finds no multipliers.

    Reference: Blondel et al. "Efficient and modular implicit differentiation". NeurIPS 2022,
    arXiv:2105.15183.
    """
    if not isinstance(problem, Problem):
        problem = Problem(_nothing, _as_loss(problem, batch))
    simple = any(Structure.LOWER_SET in declared.kinds for declared in problem.structure())
    free = isinstance(problem.lower_set, Free)
    if solver is None:
        solver = ToTolerance() if free or simple else SQP()
    fixed = jax.lax.stop_gradient((problem, x, trees.copy(y0), batch))
    found = jax.lax.stop_gradient(solver.solve(*fixed))
    found = found._replace(y=_checked(fixed, solver, found, throw))
    if free:
        y = _stationary(problem, x, batch, found.y, linear or CG(100))
    elif found.duals is not None:
        y = _active_set(problem, x, batch, found)
    elif problem.lower_set.projectable:
        tol = 100 * float(jnp.finfo(trees.widest(found.y)).eps)
        y = _fixed_point(problem, x, batch, found.y, linear or CG(100, tol))
    else:
        raise ValueError(
            f"argmin needs multipliers where lower_set is a {type(problem.lower_set).__name__}, "
            f"which has no projection, and {type(solver).__name__} finds none; lower.SQP() does."
        )
    return (y, found.residual) if return_residual else y


def _as_loss(g: Callable[..., Scalar], batch) -> Callable[..., Scalar]:
    if not callable(g):
        raise TypeError(f"argmin: {type(g).__name__} is neither a Problem nor a function g(x, y).")
    return g if batch is not None else Partial(_without_batch, Partial(g))


def _without_batch(g, x, y, batch):
    return g(x, y)


def _nothing(x, y, batch):
    return jnp.zeros(())


def _checked(given, solver, found: LowerSolution, throw: bool) -> Lower:
    """The solution; where it is none, a warning or an error. Nothing without a tolerance."""
    if not hasattr(solver, "tol"):
        return found.y
    tol, name = jnp.asarray(solver.tol, found.residual.dtype), type(solver).__name__
    unfinished = ~(found.residual <= _attainable(given, found, tol))
    if throw:
        told = f"argmin: {name} {UNFINISHED}"
        return jax.lax.stop_gradient(eqx.error_if(found.y, unfinished, told))

    def warn(unfinished, residual, tol):
        if np.any(unfinished):  # under vmap every lane calls
            size = f"a residual of about {np.max(residual):.0e}, above its tol of {np.max(tol):.0e}"
            warnings.warn(f"argmin: {name} {UNFINISHED} It left {size}.", stacklevel=1)

    # Python is called only where there is something to say.
    jax.lax.cond(
        unfinished,
        lambda: jax.debug.callback(warn, unfinished, found.residual, tol),
        lambda: None,
    )
    return found.y


UNFINISHED = (
    "did not finish the lower solve, so neither y nor its derivatives can be trusted. Give "
    "argmin more max_steps, such as solver=bl.lower.ToTolerance(max_steps=100_000), a larger tol "
    "or another start y0, and check that the lower loss is finite and strongly convex "
    "there."
)


def _attainable(given, found: LowerSolution, tol) -> Scalar:
    """The tolerance, or what rounding leaves of it: the terms of ∇_y g are of order `H y`."""
    problem, x, y0, batch = given
    y, dtype = found.y, found.residual.dtype
    eps = jnp.finfo(dtype).eps
    force, pull, _ = oracles.lower_products(problem, x, y, y, batch)
    size, terms = (trees.norm(tree).astype(dtype) for tree in (y, pull))
    begun = trees.norm(oracles.lower_grad(problem, x, y0, batch)).astype(dtype)
    if not isinstance(problem.lower_set, Free):
        balance = trees.norm(force).astype(dtype)  # what multipliers hold
        tol, terms = tol * jnp.maximum(1, balance), terms + balance + size
    return jnp.maximum(tol, 1000 * eps * terms + 30 * eps * begun)


def _stationary(problem: Problem, x, batch, y: Lower, linear: AbstractLinear) -> Lower:
    """The root of `∇_y g` that y is."""

    def stationary(y):
        return oracles.lower_grad(problem, x, y, batch)

    def solve_tangent(hvp, b):
        return jax.lax.custom_linear_solve(
            hvp, b, lambda hvp, b: linear.solve(lambda v, i: hvp(v), b), symmetric=True
        )

    return jax.lax.custom_root(stationary, y, lambda _, y: y, solve_tangent)


def _fixed_point(problem: Problem, x, batch, y: Lower, linear: AbstractLinear) -> Lower:
    """The root of `y − P(y − ∇_y g)` that y is.

    Its Jacobian is `I − D (I − H)`, with D the derivative of P, symmetric because P is a gradient.
    The system `(I − D (I − H)) v = b` is solved by `v = b + D q` with
    `(D (I − D) + D H D) q = D (I − H) b`, which is symmetric and positive semidefinite.
    """

    def distance(y):
        ahead = trees.sub(y, oracles.lower_grad(problem, x, y, batch))
        return trees.sub(y, problem.lower_set.project(ahead, x))

    known, at, rows = jax.lax.stop_gradient((problem, x, batch))
    H = oracles.hessian(known, at, y, RepeatedBatch(rows))
    ahead = trees.sub(y, oracles.lower_grad(known, at, y, rows))
    _, D = jax.linearize(lambda z: known.lower_set.project(z, at), ahead)

    def rest(v):
        return trees.sub(v, H(v))  # (I − H) v

    def inner(v, i):
        d = D(v)
        return trees.sub(d, D(rest(d)))  # D v − D (I − H) D v

    def solve(_, b):
        return trees.add(b, D(linear.solve(inner, D(rest(b)))))

    def transposed(_, b):
        return trees.add(b, rest(D(linear.solve(inner, D(b)))))

    def solve_tangent(jacobian, b):
        return jax.lax.custom_linear_solve(jacobian, b, solve, transposed)

    return jax.lax.custom_root(distance, y, lambda _, y: y, solve_tangent)


class _Point(NamedTuple):
    y: Array  # ravelled
    duals: Duals


def _active_set(problem: Problem, x, batch, found: LowerSolution) -> Lower:
    """The root of the KKT conditions on the active rows that the solution is."""
    flat, unravel = trees.ravel(found.y)
    mask = found.active
    assert mask is not None
    assert found.duals is not None

    def conditions(at: _Point) -> _Point:
        y, (along, across) = unravel(at.y), at.duals
        duals = Duals(jnp.where(mask, along, 0), across)
        pull = jax.grad(lambda flat: kkt.weighed(problem, x, unravel(flat), duals))(at.y)
        force, _ = trees.ravel(oracles.lower_grad(problem, x, y, batch))
        h, e = kkt.constraints(problem, x, y)
        return _Point(force + pull, Duals(jnp.where(mask, h, -along), e))

    def solve_tangent(jacobian, b):
        right, back = trees.ravel(b)
        columns = jax.vmap(lambda v: trees.ravel(jacobian(back(v)))[0])(
            jnp.eye(right.size, dtype=right.dtype)
        )
        return back(matrices.solve_symmetric(columns.T, right))

    root = _Point(flat, found.duals)
    return unravel(jax.lax.custom_root(conditions, root, lambda _, at: at, solve_tangent).y)
