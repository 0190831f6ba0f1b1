"""Linear equations `E y = d`, factorised once: tangent directions and multipliers."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bilevel import trees
from bilevel.sets import AbstractSet


class Equations(NamedTuple):
    """The matrix E over the ravelled y, and its pseudo-inverse. Dependent rows are allowed."""

    E: Float[Array, "k m"]
    inverse: Float[Array, "m k"]  # E⁺

    @classmethod
    def of(cls, a_set: AbstractSet, y: PyTree, x: PyTree) -> "Equations":
        """The equations of a linear set at x; only the shapes of y are used."""
        E = a_set.rows(y, x).E
        return cls(E, jnp.linalg.pinv(E) if E.shape[0] else E.T)

    def tangent(self, v: PyTree) -> PyTree:
        """`(I − E⁺E) v`: the part of v along the null space of E, shaped like v."""
        flat, unravel = trees.ravel(v)
        return unravel(flat - self.inverse @ (self.E @ flat))

    def multiplier(self, slope: PyTree) -> Float[Array, " k"]:
        """`λ = −(E⁺)ᵀ slope`, which minimises `‖slope + Eᵀλ‖`."""
        flat, _ = trees.ravel(slope)
        return -self.inverse.T @ flat
