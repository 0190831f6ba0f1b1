"""Contacts on an outline, the wrenches of their forces, and the two losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar, ScalarLike

from bilevel.lower import qp
from bilevel.problem import Batch, Problem

Outline = Callable[[Scalar], Float[Array, "2"]]  # angle in radians to a point, anticlockwise
RIDGE = 1e-9  # on the forces, so that they are unique; below any energy of interest


class Frames(NamedTuple):
    """Contacts: where they are, inward normals, and tangents."""

    points: Float[Array, "n 2"]
    normals: Float[Array, "n 2"]
    tangents: Float[Array, "n 2"]


def ellipse(width: float = 1.0, height: float = 1.0) -> Outline:
    """An ellipse by its half axes; a circle of radius 1 by default."""
    return lambda angle: jnp.stack([width * jnp.cos(angle), height * jnp.sin(angle)])


def rounded(corners: int = 3, depth: float = 0.1) -> Outline:
    """A body with rounded corners: radius `1 + depth · cos(corners · angle)`."""

    def outline(angle):
        radius = 1 + depth * jnp.cos(corners * angle)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    return outline


def frames(outline: Outline, x: Float[Array, " n"]) -> Frames:
    """Contacts at these angles."""
    points = jax.vmap(outline)(x)
    along = jax.vmap(jax.jacfwd(outline))(x)
    tangents = along / jnp.linalg.norm(along, axis=1, keepdims=True)
    normals = jnp.stack([-tangents[:, 1], tangents[:, 0]], 1)
    return Frames(points, normals, tangents)


def wrenches(outline: Outline, x: Float[Array, " n"]) -> Float[Array, "3 n2"]:
    """`G(x)`: force and torque of unit pressures and frictions; pressures come first."""
    points, normals, tangents = frames(outline, x)
    directions = jnp.concatenate([normals, tangents])
    arms = jnp.concatenate([points, points])
    torques = arms[:, 0] * directions[:, 1] - arms[:, 1] * directions[:, 0]
    return jnp.concatenate([directions.T, torques[None]])


def forces(outline: Outline, friction: ScalarLike, x: Float[Array, " n"]) -> Float[Array, " n2"]:
    """The lower problem: forces whose wrench is nearest to zero."""
    n = len(x)
    G, eye, zeros = wrenches(outline, x), jnp.eye(n, dtype=x.dtype), jnp.zeros((n, n), x.dtype)
    cone = friction * eye
    A = jnp.concatenate(
        [
            jnp.concatenate([-eye, zeros], 1),
            jnp.concatenate([eye, zeros], 1),
            jnp.concatenate([-cone, eye], 1),
            jnp.concatenate([-cone, -eye], 1),
            jnp.concatenate([-jnp.ones((1, n), x.dtype), jnp.zeros((1, n), x.dtype)], 1),
        ]
    )
    b = jnp.asarray(np.repeat([0.0, 1, 0, 0, -1], [n, n, n, n, 1]), x.dtype)
    Q = G.T @ G + RIDGE * jnp.eye(2 * n, dtype=x.dtype)
    return qp(Q, jnp.zeros(2 * n, x.dtype), A, b).y


def problem(outline: Outline, *, friction: ScalarLike = 0.1) -> Problem:
    """The two losses. x are n angles, y the 2n forces; neither loss takes a batch.

    The lower step solves the quadratic program, and the hypergradient is declared, so that methods
    of the family `implicit`, such as TTSA, take exact steps.
    """

    def loss(x, y, batch):
        return jnp.sum((wrenches(outline, x) @ y) ** 2) / 2

    def solved(x, y, batch):
        return forces(outline, jnp.asarray(friction, x.dtype), x)

    def danskin(x, y, batch: Batch):
        return jax.grad(loss)(x, y, None)

    return Problem(loss, loss, lower_step=solved, hypergradient=danskin)
