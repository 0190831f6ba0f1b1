"""A multiplier that makes a step decrease a constraint while following an objective."""

import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel import trees
from bilevel.typing import Scalar


def barrier_multiplier(f: PyTree, q: PyTree, decrease: Scalar) -> Scalar:
    """`λ = max(0, (decrease − ⟨f, q⟩)/‖q‖²)`; zero where `‖q‖²` vanishes.

    Then `d = f + λ q` is the direction closest to f with `⟨d, q⟩ ≥ decrease`, and
    `⟨d, q⟩ = max(⟨f, q⟩, decrease)`: along −d the function whose gradient is q falls at that rate.

    Args:
        f, q: gradients of the objective and of the constraint, trees of one structure.
    """
    square = trees.dot(q, q)
    vanishes = square < jnp.finfo(square.dtype).tiny
    missing = jnp.maximum(decrease - trees.dot(f, q), 0)
    return jnp.where(vanishes, jnp.zeros_like(missing), missing / jnp.where(vanishes, 1, square))
