"""The line search of MAID, on intervals that hold the value of the hyper-objective.

Functions take `settings`, the `MAID` whose fields they read.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.lower import LowerSolution
from bilevel.methods.implicit.maid_state import (
    Gradient,
    MAIDState,
    Search,
    Value,
    as_like,
    count,
    norm_like,
    rounding,
)
from bilevel.problem import Batch, Problem
from bilevel.sets import Free
from bilevel.typing import Lower, Scalar, Upper


def plain_value(settings, f, f_y, e, curvature) -> Value:
    """`l(x)` from f at a y within e of y*(x)."""
    slope, curved = norm_like(f_y, e) * e, curvature / 2 * e**2
    below = slope if settings.convex_upper else slope + curved
    return Value(f.astype(e.dtype), below, slope + curved, rounding(f, e))


def corrected_value(f, f_y, g_y, hvp, v, e, curvature) -> Value:
    """`l(x)` from `φ = f − vᵀ∇_y g`, which is l at y*(x) and has `∇_y φ = f_y − H v`."""
    value = f.astype(e.dtype) - trees.dot(v, g_y).astype(e.dtype)
    gap = norm_like(trees.sub(f_y, hvp), e) * e + curvature / 2 * e**2
    return Value(value, gap, gap, rounding(f, e))


def search(
    settings, problem: Problem, batch: Batch, state: MAIDState, h: Gradient, a, trials, certified
) -> Search:
    """Step sizes `a, shrink · a, ...` until l decreases for certain.

    In single precision a change within rounding counts as a decrease, too, where the curvature of
    the last move foretells one: `a ≤ secant`, and the gradient is certified.
    """
    here = h.value
    decrease = settings.slack**2 if settings.decrease is None else settings.decrease
    reach, coarse = secant(state, h.z), jnp.finfo(a.dtype).bits < 64 and not settings.as_published

    def body(at: Search) -> Search:
        a = at.step_size
        x, move, length = moved(problem, state.x, h.z, a)
        low = solve_lower(settings, problem, x, h.y, batch, h.mu * state.eps)
        y, e = low.y, jnp.maximum(state.eps, low.residual / h.mu)
        f, _, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        if settings.as_published:
            there = plain_value(settings, f, f_y, e, h.curvature)
        else:
            g_y, hvp, _ = oracles.lower_products(problem, x, y, h.v, batch.lower)
            there = corrected_value(f, f_y, g_y, hvp, h.v, e, h.curvature)

        change = there.value - here.value
        noise, wanted = there.noise + here.noise, as_like(decrease, a) * a * length**2
        blur = there.above + here.below
        found = (change + blur + noise <= -wanted) & (wanted > 0)
        if (
            coarse
        ):  # no value shows a decrease so small, but the gradient and its change foretell it
            found |= (jnp.abs(change) <= noise) & (blur <= noise) & (a <= reach) & (wanted > 0)
        # Too long at any accuracy; a change that is not a number, too.
        hopeless = ~(change - there.below - here.above <= noise - wanted)
        hopeless = jnp.asarray(False) if settings.as_published else hopeless
        shorter = as_like(settings.shrink, a) * a
        return Search(
            step_size=jnp.where(found, a, shorter),
            longest=jnp.where(hopeless, shorter, at.longest),
            x=x,
            y=y,
            move=move,
            lower_steps=at.lower_steps + low.steps,
            failed=at.failed + count(~found & ~hopeless),
            tried=at.tried + 1,
            found=found,
            blurred=at.blurred | (~hopeless & (blur > noise)),
        )

    def unfinished(at: Search):
        return certified & ~at.found & (at.failed < trials) & (at.tried < 200)

    no, none = jnp.asarray(False), count(0)
    start = Search(a, a, state.x, h.y, trees.zeros_like(state.x), none, none, none, no, no)
    return jax.lax.while_loop(unfinished, body, start)


def first_step_size(settings, state: MAIDState, z: Upper) -> Scalar:
    """The step size to try first: the last one, or the one the last two gradients tell."""
    last, size = state.step_size, norm_like(z, state.step_size)
    careful = (1 + norm_like(state.x, last)) / (10 * jnp.where(size > 0, size, 1))
    last = jnp.where(last > 0, last, careful)
    if settings.as_published:
        return last
    told = secant(state, z)
    return jnp.where(told > 0, jnp.clip(told, last / 10, 100 * last), last)


def secant(state: MAIDState, z: Upper) -> Scalar:
    """The inverse of the curvature along the last move; zero where it tells none.

    The short one of Barzilai and Borwein: the long one fails more trials than it saves steps.
    """
    change = trees.sub(z, state.z)
    curvature, square = trees.dot(state.move, change), trees.dot(change, change)
    told = (curvature > 0) & (square > 0)
    return jnp.where(told, curvature / jnp.where(told, square, 1), 0).astype(state.step_size.dtype)


def moved(problem: Problem, x: Upper, z: Upper, a) -> tuple[Upper, Upper, Scalar]:
    """`x⁺ = P(x − a z)`, `x⁺ − x`, and `‖x⁺ − x‖/a`."""
    new = trees.axpy(-a, z, x)
    if isinstance(problem.upper_set, Free):
        return new, trees.sub(new, x), norm_like(z, a)
    new = problem.upper_set.project(new)
    move = trees.sub(new, x)
    return new, move, norm_like(move, a) / a


def solve_lower(settings, problem: Problem, x: Upper, y: Lower, batch: Batch, tol) -> LowerSolution:
    solver = eqx.tree_at(lambda s: s.tol, settings.lower_solver, tol)
    low = solver.solve(problem, x, y, batch.lower)
    return low._replace(residual=low.residual.astype(tol.dtype), steps=count(low.steps))
