"""A lower solver for constraints of any kind, that returns multipliers and the active set."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, nonnegative
from bilevel.lower import kkt
from bilevel.lower.kkt import Duals
from bilevel.lower.programs import AbstractQP, Program, Qpax, solution
from bilevel.lower.solvers import AbstractLowerSolver, LowerSolution
from bilevel.typing import Scalar


class SQP(AbstractLowerSolver):
    """Newton's method on the KKT conditions: a quadratic program a step, and a line search.

    For a lower loss strongly convex in y over linear constraints or convex ones `h(x, ·) <= 0`
    with an interior, moving with x or not; without constraints it is damped Newton. A quadratic
    loss over linear constraints takes one step, and comes out exact to rounding. A step costs a
    lower gradient, a dense Hessian (m² numbers, m products) and a program of m variables; the line
    search on `g + ρ (Σ [h]_+ + Σ |e|)` a gradient an attempt. A step is halved, too, where g ends
    steeper uphill than its curvature foretells: so entropies and barriers keep it off bounds that
    are not active.

    Attributes:
        tol: on the KKT residual `max(‖∇_y L‖, ‖[h]_+‖, ‖e‖, |λ_i h_i|)`, relative to the forces
            that balance in it where those exceed one.
        max_steps: it stops there, converged or not.
        programs: solver of the quadratic programs.
    """

    tol: ScalarLike = nonnegative(1e-10)
    max_steps: int = count(50)
    programs: AbstractQP = eqx.field(default_factory=Qpax)

    def solve(self, problem, x, y0, batch=None) -> LowerSolution:
        flat, unravel = trees.ravel(trees.cast_like(y0, y0))
        rounding = jnp.finfo(flat.dtype).eps
        tol = jnp.maximum(jnp.asarray(self.tol, flat.dtype), 20 * rounding)

        def look(flat, duals):
            """All that the next step needs of a point."""
            y = unravel(flat)
            force, _ = trees.ravel(oracles.lower_grad(problem, x, y, batch))
            h, A, e, E = at = kkt.face(problem, x, y)
            balance = force + A.T @ duals.inequalities + E.T @ duals.equalities
            parts = balance, jnp.maximum(h, 0), e, jnp.minimum(duals.inequalities, -h)
            residual = jnp.linalg.norm(jnp.concatenate(parts))
            return force, at, residual, residual <= tol * jnp.maximum(1, jnp.linalg.norm(force))

        def merit(flat, weight):
            """The value that has to fall, and ∇_y g."""
            y = unravel(flat)
            h, e = kkt.constraints(problem, x, y)
            outside = jnp.sum(jnp.maximum(h, 0)) + jnp.sum(jnp.abs(e))
            value, g_y = oracles.lower_value_and_grad(problem, x, y, batch)
            return value.astype(flat.dtype) + weight * outside, trees.ravel(g_y)[0]

        def body(at: _At) -> _At:
            h, A, e, E = at.face
            H = kkt.hessian(problem, x, unravel(at.y), at.duals, batch)
            step = solution(Program(H, at.force, A, -h, E, -e), self.programs)
            weight = 2 * jnp.max(jnp.abs(jnp.concatenate(step.duals)), initial=0)
            outside = jnp.sum(jnp.maximum(h, 0)) + jnp.sum(jnp.abs(e))
            down = at.force @ step.y
            here, slope = merit(at.y, weight)[0], down - weight * outside
            foretold = 2 * jnp.maximum(jnp.abs(down), step.y @ H @ step.y)

            def too_long(length):
                value, force = merit(at.y + length * step.y, weight)
                allowed = here + 1e-4 * length * slope + 10 * rounding * jnp.abs(here)
                blur = 10 * rounding * jnp.linalg.norm(force) * jnp.linalg.norm(step.y)
                fits = (value <= allowed) & (force @ step.y <= foretold + blur)
                return ~fits & (length > 1e-10)

            whole = jnp.ones((), at.y.dtype)
            length = jax.lax.while_loop(too_long, lambda length: length / 2, whole)
            y = at.y + length * step.y
            force, face, residual, done = look(y, step.duals)
            stuck = jnp.linalg.norm(y - at.y) <= rounding * jnp.linalg.norm(y)
            return _At(
                y, step.duals, step.active, force, face, residual, done | stuck, at.steps + 1
            )

        duals = kkt.no_duals(problem, x, unravel(flat))
        force, face, residual, done = look(flat, duals)
        inactive = jnp.zeros(face.h.shape, bool)
        none = jnp.zeros((), jnp.int32)
        at = jax.lax.while_loop(
            lambda at: ~at.done & (at.steps < self.max_steps) & jnp.isfinite(at.residual),
            body,
            _At(flat, duals, inactive, force, face, residual, done, none),
        )
        return LowerSolution(unravel(at.y), at.residual, at.steps, at.duals, at.active)


class _At(NamedTuple):
    y: Array  # ravelled
    duals: Duals
    active: Bool[Array, " k"]
    force: Array  # ∇_y g
    face: kkt.Face
    residual: Scalar
    done: Bool[Array, ""]
    steps: Int[Array, ""]
