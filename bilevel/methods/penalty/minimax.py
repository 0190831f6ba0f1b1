"""First-order solvers for `min over a, max over b`, over sets with a simple projection.

Lu, Mei. "First-order penalty methods for bilevel optimization". SIAM J. Optim. 34(2), 2024,
arXiv:2301.01716.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bilevel import trees
from bilevel.typing import PyTree, Scalar, ScalarLike

Point = PyTree  # a pair (a, b) of trees
Field = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (a, b) → (∇_a h, ∇_b h)


class Saddle(NamedTuple):
    """A saddle point and its accuracy."""

    a: PyTree
    b: PyTree
    residual: Scalar  # distance of zero from the subgradients there
    steps: Int[Array, ""]
    evaluations: Int[Array, ""]  # of both gradients together


class _Outer(NamedTuple):
    z: PyTree  # −s_a times a
    z_f: PyTree
    b: PyTree
    b_f: PyTree
    best: tuple[PyTree, PyTree]
    residual: Scalar
    steps: Int[Array, ""]
    evaluations: Int[Array, ""]


class _Inner(NamedTuple):
    at: Point
    field: Point  # the operator there
    normal: Point  # normals of the sets there
    unfinished: Bool[Array, ""]
    t: Int[Array, ""]


def saddle(
    field: Field,
    a0: PyTree,
    b0: PyTree,
    *,
    project_a: Callable[[PyTree], PyTree],
    project_b: Callable[[PyTree], PyTree],
    convexity: ScalarLike,
    concavity: ScalarLike,
    smoothness: ScalarLike,
    tol: ScalarLike,
    max_steps: int = 10_000,
) -> Saddle:
    """`min_{a in A} max_{b in B} h(a, b)`, h strongly convex in a and strongly concave in b.

    Accelerated proximal-point steps in the dual of a, each solved by extra-gradient steps to a
    relative error. Takes about `L/√(s_a s_b) log(1/tol)` gradients in total.

    Args:
        field: both gradients of h.
        a0, b0: starting point, trees of any shapes.
        project_a, project_b: projections on the sets.
        convexity, concavity: s_a, s_b.
        smoothness: L, a joint Lipschitz constant of the two gradients.
        tol: bound on the distance of zero from the subdifferential at the returned point.
        max_steps: largest number of steps of the outer loop, and of each inner loop.

    Reference: Algorithm 5 of Lu, Mei; Kovalev, Gasnikov. NeurIPS 2022, arXiv:2205.05653.
    """
    dtype = trees.widest((a0, b0))
    s_a, s_b, L = (jnp.asarray(n, dtype) for n in (convexity, concavity, smoothness))
    mix = jnp.minimum(1, jnp.sqrt(8 * s_b / s_a))
    eta_z, eta_b = s_a / 2, jnp.minimum(1 / (2 * s_b), 4 / (mix * s_a))
    gamma = 8 / s_a
    step = gamma / (2 * jnp.sqrt(jnp.asarray(5, dtype)) * (1 + 8 * L / s_a))
    short = jnp.minimum(s_a, s_b) / L**2
    tol = jnp.asarray(tol, dtype)
    slack = max(100 * float(jnp.finfo(dtype).eps) ** 2, 1e-18)  # of squares, against rounding

    def project(point: Point) -> Point:
        return project_a(point[0]), project_b(point[1])

    def bent(a, b):
        """`∇_a h − s_a a` and `∇_b h + s_b b`: what is left without the strong parts."""
        h_a, h_b = field(a, b)
        return trees.axpy(-s_a, a, h_a), trees.axpy(s_b, b, h_b)

    def body(at: _Outer) -> _Outer:
        z_g, b_g = trees.lerp(at.z_f, at.z, mix), trees.lerp(at.b_f, at.b, mix)
        first = trees.scale(-1 / s_a, z_g), b_g

        def operator(point: Point) -> Point:
            a, b = point
            h_a, h_b = bent(a, b)
            to_a = trees.axpy(s_a / 2, trees.axpy(-1 / s_a, z_g, a), h_a)
            to_b = trees.axpy(s_a / 8, trees.sub(b, b_g), trees.axpy(s_b, b, _minus(h_b)))
            return to_a, to_b

        def resolvent(u: Point) -> tuple[Point, Point]:
            """The projection of u, and the normal vector there."""
            there = project(u)
            return there, trees.scale(1 / step, trees.sub(u, there))

        def tell(point: Point, normal: Point, t) -> _Inner:
            field = operator(point)
            left, moved = trees.add(field, normal), trees.sub(point, first)
            unfinished = gamma * trees.dot(left, left) > trees.dot(moved, moved) / gamma + slack
            return _Inner(point, field, normal, unfinished, t)

        start, normal = resolvent(trees.axpy(-step, operator(first), first))

        def extragradient(at: _Inner) -> _Inner:
            back = jnp.asarray(2, dtype) / (at.t + 3).astype(dtype)
            pulled = trees.lerp(at.at, start, back)
            half = trees.axpy(-step, trees.add(at.field, at.normal), pulled)
            return tell(*resolvent(trees.axpy(-step, operator(half), pulled)), at.t + 1)

        none = jnp.zeros((), jnp.int32)
        inner = jax.lax.while_loop(
            lambda at: at.unfinished & (at.t < max_steps), extragradient, tell(start, normal, none)
        )
        a_f, b_f = inner.at
        h_a, h_b = bent(a_f, b_f)
        z_f, w_f = trees.add(h_a, inner.normal[0]), trees.sub(inner.normal[1], h_b)
        z = trees.lerp(at.z, z_f, eta_z / s_a)
        z = trees.axpy(-eta_z, trees.axpy(1 / s_a, z_f, a_f), z)
        b = trees.lerp(at.b, b_f, eta_b * s_b)
        b = trees.axpy(-eta_b, trees.axpy(s_b, b_f, w_f), b)

        a = trees.scale(-1 / s_a, z)
        h = field(a, b)
        a_h, b_h = project(
            (trees.axpy(-short, h[0], a), trees.axpy(short, h[1], b)),
        )
        h_h = field(a_h, b_h)
        off_a = trees.axpy(1 / short, trees.sub(a, a_h), trees.sub(h_h[0], h[0]))
        off_b = trees.axpy(1 / short, trees.sub(b_h, b), trees.sub(h_h[1], h[1]))
        residual = trees.norm((off_a, off_b)).astype(dtype)
        evaluations = at.evaluations + 2 * inner.t + 5
        return _Outer(z, z_f, b, b_f, (a_h, b_h), residual, at.steps + 1, evaluations)

    def unfinished(at: _Outer):
        return ~(at.residual <= tol) & (at.steps < max_steps) & ~jnp.isnan(at.residual)

    z0, none = trees.scale(-s_a, a0), jnp.zeros((), jnp.int32)
    start = _Outer(z0, z0, b0, b0, (a0, b0), jnp.asarray(jnp.inf, dtype), none, none)
    end = jax.lax.while_loop(unfinished, body, start)
    return Saddle(*end.best, end.residual, end.steps, end.evaluations)


def proximal_saddle(
    field: Field,
    a0: PyTree,
    b0: PyTree,
    anchor: PyTree,
    *,
    project_a: Callable[[PyTree], PyTree],
    project_b: Callable[[PyTree], PyTree],
    smoothness: ScalarLike,
    diameter: ScalarLike,
    accuracy: ScalarLike,
    tol: ScalarLike,
    max_steps: int = 10_000,
) -> Saddle:
    """One proximal-point step on `min_a max_b h(a, b)`, h smooth, nonconvex in a, concave in b.

    Calls `saddle` on `h − (ε/(4D)) ‖b − anchor‖² + L ‖a − a0‖²`, which is strongly convex-concave.
    Repeated until a moves by at most `ε/(4L)`, with the first b as the anchor and the tolerance of
    step k divided by k + 1, this finds an ε-stationary point (Algorithm 6 of Lu, Mei).

    Args:
        smoothness: L, a joint Lipschitz constant of the two gradients.
        diameter: D, the diameter of the set of b.
        accuracy: ε.
        tol: tolerance of this step.
    """
    dtype = trees.widest((a0, b0))
    L, pull = jnp.asarray(smoothness, dtype), jnp.asarray(accuracy, dtype) / (2 * diameter)

    def strong(a, b):
        h_a, h_b = field(a, b)
        h_a = trees.axpy(2 * L, trees.sub(a, a0), h_a)
        return h_a, trees.axpy(-pull, trees.sub(b, anchor), h_b)

    return saddle(
        strong,
        a0,
        b0,
        project_a=project_a,
        project_b=project_b,
        convexity=L,
        concavity=pull,
        smoothness=3 * L + pull,
        tol=tol,
        max_steps=max_steps,
    )


def _minus(tree: PyTree) -> PyTree:
    return trees.scale(-1.0, tree)
