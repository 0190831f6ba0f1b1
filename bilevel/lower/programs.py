"""Quadratic and linear programs whose solutions are differentiable functions of their entries."""

import abc
import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from bilevel import trees
from bilevel.fields import Checked, count
from bilevel.lower import kkt
from bilevel.lower.kkt import Duals
from bilevel.typing import Scalar


class Program(NamedTuple):
    """Minimise `½ yᵀQy + cᵀy` over `A y <= b`, `E y = d`."""

    Q: Float[Array, "m m"]
    c: Float[Array, " m"]
    A: Float[Array, "k m"]
    b: Float[Array, " k"]
    E: Float[Array, "p m"]
    d: Float[Array, " p"]


class Solution(NamedTuple):
    """What a program was solved by."""

    y: Float[Array, " m"]
    duals: Duals
    active: Bool[Array, " k"]  # which inequalities hold with equality and push
    residual: Scalar  # largest violation of the optimality conditions, in the program's own scale


class AbstractQP(Checked):
    """Finds a solution; derivatives are none of its business."""

    @abc.abstractmethod
    def solve(self, program: Program) -> tuple[Array, Array, Array]:
        """y, λ and ν, nearly."""


class Qpax(AbstractQP):
    """Primal-dual interior point, for dense programs with up to a few hundred variables.

    Needs the extra `bilevel[qp]`.

    Attributes:
        tol: on the residuals; 1e-10 when absent, in float32 1e-5.
        max_steps: it stops there, whatever the residuals are.
    """

    tol: ScalarLike | None = None
    max_steps: int = count(40)

    def solve(self, program):
        qpax = _imported("qpax")
        exact = program.c.dtype == jnp.float64
        tol = (1e-10 if exact else 1e-5) if self.tol is None else self.tol
        Q, c, A, b, E, d = program
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            y, _, along, across, *_ = qpax.solve_qp(
                Q, c, E, d, A, b, backend="i", solver_tol=tol, max_iter=self.max_steps
            )
        return y, along, across


class Mpax(AbstractQP):
    """Restarted primal-dual hybrid gradients, for larger programs: products with matrices alone.

    Needs the extra `bilevel[qp]`.

    Attributes:
        tol: absolute and relative, on the residuals and the gap; 1e-8 when absent, in float32 1e-5.
        max_steps: it stops there, whatever the residuals are.
    """

    tol: ScalarLike | None = None
    max_steps: int = count(100_000)

    def solve(self, program):
        mpax = _imported("mpax")
        exact = program.c.dtype == jnp.float64
        tol = (1e-8 if exact else 1e-5) if self.tol is None else self.tol
        Q, c, A, b, E, d = program
        open_end = jnp.full_like(c, jnp.inf)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            made = mpax.create_qp(Q, c, E, d, -A, -b, -open_end, open_end, use_sparse_matrix=False)
            made = dataclasses.replace(made, is_lp=False)  # it asks the entries, which are traced
            found = mpax.raPDHG(
                verbose=False, eps_abs=tol, eps_rel=tol, iteration_limit=self.max_steps
            ).optimize(made)
        p = E.shape[0]
        y, duals = (v.astype(c.dtype) for v in (found.primal_solution, found.dual_solution))
        return y, duals[p:], -duals[:p]


def qp(
    Q: Array,
    c: Array,
    A: Array | None = None,
    b: Array | None = None,
    E: Array | None = None,
    d: Array | None = None,
    *,
    solver: AbstractQP | None = None,
) -> Solution:
    """Solve `min ½ yᵀQy + cᵀy` over `A y <= b`, `E y = d`: differentiable in every entry.

    An iterative solver finds which rows are active, a few rounds of a primal-dual active-set method
    correct its mistakes, and one linear solve on the face of the active rows gives y and the
    multipliers to rounding. That last solve carries the derivatives, of any order, in both modes:
    those of the face, which are the right ones where strict complementarity holds.

    Args:
        c: the linear term, shape (n,).
        Q: symmetric, (n, n), positive definite on the active face; zeros for a linear program.
        A, b: rows of inequalities; an infinite entry of b switches its row off.
        E, d: rows of equations.
        solver: `Qpax()` when absent; `Mpax()` for large programs.

    Returns:
        `Solution(y, duals, active, residual)`. A large or NaN residual says that there is no
        solution, or that none was found. Where there are several, y is the one the solver found;
        where multipliers are not unique, those nearest to the ones it found.

    Raises:
        ValueError: one of a pair without the other.
        ImportError: the solver's package is not installed.
    """
    c = jnp.asarray(c)
    A, b = _pair("A", A, "b", b, c)
    E, d = _pair("E", E, "d", d, c)
    on = jnp.isfinite(b)
    A, b = jnp.where(on[:, None], A, 0), jnp.where(on, b, kkt.NEVER)
    return _qp(Program(jnp.asarray(Q), c, A, b, E, d), Qpax() if solver is None else solver)


def lp(
    c: Array,
    A: Array | None = None,
    b: Array | None = None,
    E: Array | None = None,
    d: Array | None = None,
    *,
    solver: AbstractQP | None = None,
) -> Solution:
    """Solve `min cᵀy` over `A y <= b`, `E y = d`: `qp` with no quadratic term.

    At a vertex y does not move with c, and moves with A, b, E, d as the vertex does; it jumps
    where another vertex takes over, which no derivative shows. `solver` is as in `qp`.
    """
    c = jnp.asarray(c)
    return qp(jnp.zeros((c.size, c.size), c.dtype), c, A, b, E, d, solver=solver)


@eqx.filter_jit  # so that a call outside of compiled code does not compile the solver again
def _qp(program: Program, solver: AbstractQP) -> Solution:
    found = jax.lax.stop_gradient(solution(jax.lax.stop_gradient(program), solver))
    near = found.y, *found.duals
    y, along, across = _step_to_face(program, near, found.active)
    return found._replace(y=y, duals=Duals(along, across))


def solution(program: Program, solver: AbstractQP) -> Solution:
    """What `qp` returns, as numbers: it cannot be differentiated."""
    known = _normalised(program)
    z = _guess(known.program, solver)
    mask = _is_active(known.program, z)

    def correct(at: _Round) -> _Round:
        """The point on the face, which rows it calls active, and the better of it and the last."""
        z = _step_to_face(known.program, at.z, at.next)
        size = _violation(known.program, z)
        better, then = size < at.least, _is_active(known.program, z)
        return _Round(
            z=trees.where(better, z, at.z),
            mask=jnp.where(better, at.next, at.mask),
            next=then,
            least=jnp.minimum(size, at.least),
            more=better & jnp.any(then != at.next),
        )

    first = _Round(z, mask, mask, jnp.full((), jnp.inf, program.c.dtype), jnp.asarray(True))
    # Without inequalities the first round is the last.
    last = jax.lax.while_loop(lambda at: at.more, correct, first) if mask.size else correct(first)
    y, along, across = last.z
    duals = Duals(along * known.rows * known.scale, across * known.columns * known.scale)
    return Solution(y, duals, last.mask, last.least)


class _Round(NamedTuple):
    z: tuple[Array, Array, Array]  # best so far
    mask: Bool[Array, " k"]  # of its face
    next: Bool[Array, " k"]  # the face to look at
    least: Scalar  # violation at z
    more: Bool[Array, ""]  # the last round was the better one, and asks for another face


def _step_to_face(program: Program, z, mask) -> tuple[Array, Array, Array]:
    """From z to the solution on the face of some rows: a Newton step, differentiable.

    Along directions that the face leaves open it stays where z is.
    """
    Q, c, A, b, E, d = program
    y, along, across = z
    along = jnp.where(mask, along, 0)
    gap = (
        Q @ y + c + A.T @ along + E.T @ across,
        jnp.where(mask, A @ y - b, 0),
        E @ y - d,
    )
    change = kkt.solve(Q, A, E, mask, gap)
    return y - change[0], along - change[1], across - change[2]


class _Normalised(NamedTuple):
    program: Program
    scale: Array  # what the objective was divided by
    rows: Array  # what turns its multipliers back, with the scale
    columns: Array


def _normalised(program: Program) -> _Normalised:
    """Rows of length one and an objective of size one: tolerances then mean the same everywhere."""
    Q, c, A, b, E, d = program
    quadratic = jnp.max(jnp.abs(Q), initial=0)
    scale = jnp.where(quadratic > 0, quadratic, kkt.scale_of(c))
    rows, columns = _inverse_lengths(A), _inverse_lengths(E)
    shorter = Program(
        Q / scale, c / scale, rows[:, None] * A, rows * b, columns[:, None] * E, columns * d
    )
    return _Normalised(shorter, scale, rows, columns)


def _inverse_lengths(A: Array) -> Array:
    square = jnp.sum(A * A, axis=1)
    return jnp.where(square > 0, 1 / jnp.sqrt(jnp.where(square > 0, square, 1)), 1)


def _guess(program: Program, solver: AbstractQP) -> tuple[Array, Array, Array]:
    """What the iterative solver finds; without inequalities there is nothing to search for."""
    b = program.b
    if not b.size:
        return jnp.zeros_like(program.c), b, jnp.zeros_like(program.d)
    off = b >= kkt.NEVER / 2  # a row of zeros below one, instead of below a number that rounds
    return solver.solve(program._replace(b=jnp.where(off, 1, b)))


def _is_active(program: Program, z) -> Bool[Array, " k"]:
    y, along, _ = z
    slack = program.b - program.A @ y
    return kkt.active(program.A, slack, along, jnp.ones((), y.dtype))


def _violation(program: Program, z) -> Scalar:
    """The largest violation of stationarity, feasibility and the signs of multipliers."""
    Q, c, A, b, E, d = program
    y, along, across = z
    parts = (
        Q @ y + c + A.T @ along + E.T @ across,
        jnp.maximum(A @ y - b, 0),
        jnp.minimum(along, 0),
        jnp.minimum(along, jnp.maximum(b - A @ y, 0)),
        E @ y - d,
    )
    worst = jnp.max(jnp.abs(jnp.concatenate(parts)))
    return jnp.where(jnp.isnan(worst), jnp.inf, worst)


def _pair(left: str, rows, right: str, values, c: Array) -> tuple[Array, Array]:
    if (rows is None) != (values is None):
        given, missing = (left, right) if values is None else (right, left)
        raise ValueError(f"qp: {given} is given without {missing}.")
    if rows is None:
        return jnp.zeros((0, c.size), c.dtype), jnp.zeros(0, c.dtype)
    rows, values = jnp.asarray(rows), jnp.asarray(values)
    if rows.shape != (values.size, c.size) or values.ndim != 1:
        raise ValueError(
            f"qp: {left} of shape {rows.shape} and {right} of shape {values.shape} do not fit a "
            f"variable of {c.size} entries."
        )
    return rows.astype(c.dtype), values.astype(c.dtype)


def _imported(name: str):
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(
            f"A lower problem with linear inequalities needs {name}: pip install 'bilevel[qp]'."
        ) from error
