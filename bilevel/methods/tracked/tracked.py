"""A single loop with a tracked adjoint: x, y and v move together, once per step.

`v` follows the solution of `H v = ∇_y f` as y follows y*(x). All three directions are linear in
the losses, so sampled directions are unbiased. All of them are zero exactly at `y = y*(x)`,
`v = H⁻¹ ∇_y f`, `∇l(x) = 0`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.problem import Batch, Problem
from bilevel.sets import AbstractSet, Ball, Free
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate


class Point(NamedTuple):
    """The point at which directions are evaluated."""

    x: Upper
    y: Lower
    v: Lower


class Directions(NamedTuple):
    """The directions of x, y and v (each moves along the negative), and the upper loss."""

    value: Scalar  # f
    x: Upper  # ∇_x f − (∂²g/∂x∂y) v
    y: Lower  # ∇_y g
    v: Lower  # (∂²g/∂y²) v − ∇_y f


class UpperPieces(NamedTuple):
    """The derivatives from one sample of the upper level."""

    value: Scalar  # f
    f_x: Upper
    f_y: Lower


class LowerPieces(NamedTuple):
    """The derivatives from one sample of the lower level."""

    g_y: Lower
    hvp: Lower  # (∂²g/∂y²) v
    cross: Upper  # (∂²g/∂x∂y) v


def upper_pieces(problem: Problem, point: Point, batch: Any) -> UpperPieces:
    value, f_x, f_y = oracles.upper_grads(problem, point.x, point.y, batch)
    return UpperPieces(value.astype(trees.widest(point)), f_x, f_y)


def lower_pieces(problem: Problem, point: Point, batch: Any) -> LowerPieces:
    return LowerPieces(*oracles.lower_products(problem, *point, batch))


def joined(upper: UpperPieces, lower: LowerPieces) -> Directions:
    """The three directions from the derivatives of both levels."""
    return Directions(
        value=upper.value,
        x=trees.sub(upper.f_x, lower.cross),
        y=lower.g_y,
        v=trees.sub(lower.hvp, upper.f_y),
    )


def directions(problem: Problem, point: Point, batch: Batch) -> Directions:
    """All three directions at one point: one upper gradient and one fused lower product."""
    return joined(
        upper_pieces(problem, point, batch.upper), lower_pieces(problem, point, batch.lower)
    )


PRICE = oracles.Price(upper_grad=1, lower_grad=1, hvp=1, cross=1)  # of `directions`


def x_direction(problem: Problem, point: Point, batch: Batch) -> tuple[Scalar, Upper]:
    """`f` and `∇_x f − (∂²g/∂x∂y) v` alone: one gradient and one cross product."""
    x, y, v = point
    value, f_x = oracles.upper_grad_x(problem, x, y, batch.upper)
    cross = oracles.cross(problem, x, y, v, batch.lower)
    return value.astype(trees.widest(point)), trees.sub(f_x, cross)


def v_direction(problem: Problem, point: Point, batch: Batch) -> Lower:
    """`(∂²g/∂y²) v − ∇_y f` alone: one gradient and one Hessian product."""
    x, y, v = point
    hvp = oracles.hvp(problem, x, y, v, batch.lower)
    return trees.sub(hvp, oracles.upper_grad_y(problem, x, y, batch.upper))


# Zeros with the shapes of the estimands, so that an estimator can set up its memory without data.


def like_upper(point: Point, sample: Any) -> UpperPieces:
    return UpperPieces(_number(point), point.x, point.y)


def like_lower(point: Point, sample: Any) -> LowerPieces:
    return LowerPieces(point.y, point.v, point.x)


def like_directions(point: Point, sample: Any) -> Directions:
    return Directions(_number(point), *point)


def like_x_direction(point: Point, sample: Any) -> tuple[Scalar, Upper]:
    return _number(point), point.x


def _number(point: Point) -> Scalar:
    return jnp.zeros((), trees.widest(point))


# --- the move -------------------------------------------------------------------------------


class TrackedState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    v: Lower  # adjoint, follows the solution of H v = ∇_y f
    updates: tuple[Any, Any, Any]  # memories of the x, y and v updates
    memory: Any = None  # memory of the estimators of the directions

    @property
    def point(self) -> Point:
        return Point(self.x, self.y, self.v)


def as_radius(value: ScalarLike | None) -> Any:
    """An array, so that a new radius does not recompile; `None` stays `None`."""
    return None if value is None else jnp.asarray(value)


class Tracked(eqx.Module):
    """The move of x, y and v: each along its direction, then a projection of x.

    Attributes:
        radius: if not `None`, v is kept in the ball `‖v‖ ≤ radius`; `‖∇_y f‖/μ` is a bound on the
            exact adjoint.
    """

    x_update: AbstractUpdate
    y_update: AbstractUpdate
    v_update: AbstractUpdate
    radius: ScalarLike | None = None

    def init(self, x0: Upper, y0: Lower) -> TrackedState:
        """The state before the first step, v = 0."""
        x, y, v = trees.copy(x0), trees.copy(y0), trees.zeros_like(y0)
        updates = self.x_update.init(x), self.y_update.init(y), self.v_update.init(v)
        return TrackedState(jnp.zeros((), jnp.int32), x, y, v, updates)

    def move(
        self, problem: Problem, state: TrackedState, d: Directions, memory: Any = None
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        """Move all three variables against `d`; returns the state and scalars to log."""
        k, x, y, v, (sx, sy, sv), _ = state
        x, sx = self.x_update.step(d.x, sx, x, k)
        y, sy = self.y_update.step(d.y, sy, y, k)
        v, sv = self.v_update.step(d.v, sv, v, k)
        x, v = problem.upper_set.project(x), self._ball.project(v)
        return TrackedState(k + 1, x, y, v, (sx, sy, sv), memory), report(d.value, d.x, d.y)

    @property
    def _ball(self) -> AbstractSet:
        return Free() if self.radius is None else Ball(self.radius)


def report(value: Scalar, h: Upper, g_y: Lower) -> dict[str, Scalar]:
    """The scalars to log: the upper loss, and the norms of the x and y directions."""
    return {"upper": value, "hypergrad_norm": trees.norm(h), "lower_grad_norm": trees.norm(g_y)}


def averaged_prox(a_set: AbstractSet, x: Upper, h: Upper, tau: ScalarLike) -> Upper:
    """`x − P_X(x − τ h)`; exactly `τ h` without a set.

    It is also zero at stationary points on the boundary. A step against it of size at most one
    stays in X.
    """
    if isinstance(a_set, Free):
        return trees.scale(tau, h)
    return trees.sub(x, a_set.project(trees.sub(x, trees.scale(tau, h))))


def normalised(h: Upper) -> Upper:
    """`h/‖h‖`, with the norm over the whole tree; zero if h is zero."""
    size = trees.norm(h)
    return trees.scale(1 / jnp.where(size == 0, jnp.ones_like(size), size), h)
