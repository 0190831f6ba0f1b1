"""Implicit derivatives for any solver: of roots, and of fixed points."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import gmres

from bilevel import trees

DENSE_UP_TO = 200  # entries of the unknown, for which the linear system is solved as a matrix

Solver = Callable[..., Any]
LinearSolve = Callable[[Callable[[Any], Any], Any], Any]


def custom_root(
    optimality: Callable[..., Any], *, has_aux: bool = False, solve: LinearSolve | None = None
) -> Callable[[Solver], Solver]:
    """A decorator that gives a solver the derivatives of the root it finds::

        @bl.lower.custom_root(lambda y, x: jax.grad(loss)(y, x))
        def fit(y0, x):
            ...  # any code that JAX can trace
            return y

    `fit(y0, x)` is then differentiable in x, in forward and reverse mode, any number of times: with
    `F(y, x) = 0` its derivative is `−(∂F/∂y)⁻¹ ∂F/∂x` at the y that was returned, whatever the
    solver did. It does not depend on y0. Derivatives reach what `optimality` closes over, too.

    Args:
        optimality: `F(y, *args)`, a tree like y that is zero at the solution. It gets what the
            solver is called with, arguments by name included, and y in place of y0.
        has_aux: the solver returns `(y, aux)`, and so does the decorated one. `aux`, the number of
            steps say, has no derivative.
        solve: `solve(A, b)` returns u with `A(u) = b`, for a linear function A on trees like y.
            When absent: with up to 200 entries of y as a dense matrix, else by GMRES.

    Returns:
        A decorator for solvers `solver(y0, *args) -> y`; the start comes first.

    Raises:
        ValueError: when the solver is called: F has another shape than y, or F does not take the
            tree that the solver returned, which is not one like y0.

    Reference: Blondel et al. "Efficient and modular implicit differentiation". NeurIPS 2022,
    arXiv:2105.15183.
    """

    def decorate(solver: Solver) -> Solver:
        signature = inspect.signature(solver)

        @functools.wraps(solver)
        def solved(*given: Any, **by_name: Any) -> Any:
            bound = signature.bind(*given, **by_name)
            (y0, *args), named = bound.args, bound.kwargs
            start, held, held_by_name = jax.lax.stop_gradient((y0, args, named))
            answer = jax.lax.stop_gradient(solver(start, *held, **held_by_name))
            found, *aux = answer if has_aux else (answer,)

            def residual(y: Any) -> Any:
                return optimality(y, *args, **named)

            _check_shapes(_evaluated(residual, found, y0), found)
            tangent = _transposable(solve or _solved)
            root = jax.lax.custom_root(residual, found, lambda _, y: y, tangent)
            return (root, *aux) if has_aux else root

        return solved

    return decorate


def custom_fixed_point(
    fixed_point: Callable[..., Any], *, has_aux: bool = False, solve: LinearSolve | None = None
) -> Callable[[Solver], Solver]:
    """A decorator that gives a solver the derivatives of the fixed point it finds::

        @bl.lower.custom_fixed_point(T)
        def equilibrium(y0, x):
            return jax.lax.fori_loop(0, 200, lambda i, y: T(y, x), y0)

    As `custom_root` with `F(y, *args) = fixed_point(y, *args) − y`, for example a projected
    gradient step, a proximal step, or value iteration.

    Args:
        fixed_point: `T(y, *args)`, a tree like y that equals y at the solution.
        has_aux, solve: as for `custom_root`.
    """

    def residual(y: Any, *args: Any, **named: Any) -> Any:
        moved = fixed_point(y, *args, **named)
        _check_shapes(moved, y)
        return trees.sub(moved, y)

    return custom_root(residual, has_aux=has_aux, solve=solve)


def _evaluated(residual: Callable[[Any], Any], found: Any, y0: Any) -> Any:
    """The shapes of the condition at what the solver returned, or an error that names the cause."""
    try:
        return jax.eval_shape(residual, found)
    except Exception as error:
        returned, begun = (jax.tree.structure(tree) for tree in (found, y0))
        if returned == begun:
            raise
        raise ValueError(
            f"the optimality condition fails on what the solver returned, {returned}, where its "
            f"first argument is {begun}. A solver takes the start y0 first and returns y alone, or "
            "(y, aux) with has_aux=True."
        ) from error


def _check_shapes(residual: Any, y: Any) -> None:
    found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (residual, y))
    if found != wanted:
        raise ValueError(
            f"the optimality condition returns shapes {found} where y has {wanted}; it must return "
            "a tree like y, zero at the solution."
        )


def _transposable(solve: LinearSolve) -> LinearSolve:
    """A solve that reverse mode can turn round: the transposed system by the same means."""

    def tangent(A: Callable[[Any], Any], b: Any) -> Any:
        return jax.lax.custom_linear_solve(A, b, solve, solve)

    return tangent


def _solved(A: Callable[[Any], Any], b: Any) -> Any:
    flat, unravel = trees.ravel(b)
    if flat.size > DENSE_UP_TO:
        return gmres(A, b, tol=1e-10 if flat.dtype == jnp.float64 else 1e-6)[0]
    columns = jax.vmap(lambda v: trees.ravel(A(unravel(v)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )
    return unravel(jnp.linalg.solve(columns.T, flat))
