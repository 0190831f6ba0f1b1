"""The implicit hypergradient from its parts, with dense second derivatives."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.linear import matrices
from bilevel.problem import Problem
from bilevel.typing import Lower, Scalar, Upper


class Curvature(NamedTuple):
    """Second derivatives of g as matrices over the ravelled x and y, in float32 at least."""

    hessian: Float[Array, "m m"]  # ∂²g/∂y²
    cross: Float[Array, "n m"]  # ∂²g/∂x∂y

    @classmethod
    def zeros(cls, x: Upper, y: Lower) -> "Curvature":
        """Zero matrices, the value before the first evaluation."""
        n, m, dtype = trees.size(x), trees.size(y), trees.widest((x, y))
        return cls(jnp.zeros((m, m), dtype), jnp.zeros((n, m), dtype))


def curvature(problem: Problem, x: Upper, y: Lower, batch) -> Curvature:
    """Both matrices at the point (x, y)."""
    hessian = oracles.dense_hessian(problem, x, y, batch)
    cross = oracles.dense_cross(problem, x, y, batch)
    dtype = trees.widest((x, y))
    return Curvature(hessian.astype(dtype), cross.astype(dtype))


def from_matrices(
    value: Scalar,
    f_x: Upper,
    f_y: Lower,
    hessian: Float[Array, "m m"],
    cross: Float[Array, "n m"],
) -> HyperGrad:
    """`∇_x f − J H⁻¹ ∇_y f` from exact or estimated parts, at a cost of order m³.

    Args:
        value: the upper loss, returned as it is.
        f_x, f_y: `∇_x f` and `∇_y f`, trees of n and of m entries.
        hessian: H, estimate of `∂²g/∂y²` over the ravelled y: symmetric, positive definite.
        cross: J, estimate of `∂²g/∂x∂y` over the ravelled x and y.
    """
    v = matrices.solve(hessian, f_y)
    return HyperGrad(value, trees.sub(f_x, matrices.multiply(cross, v, like=f_x)), v)
