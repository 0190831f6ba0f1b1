"""A multiplier for steps that decrease a constraint and stay close to the objective's gradient."""

import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel import trees
from bilevel.typing import Scalar


def barrier_multiplier(f: PyTree, q: PyTree, decrease: Scalar) -> Scalar:
    """`λ = max(0, (decrease − ⟨f, q⟩)/‖q‖²)`; zero if `‖q‖²` vanishes.

    Then `d = f + λ q` is the direction closest to f with `⟨d, q⟩ ≥ decrease`, and
    `⟨d, q⟩ = max(⟨f, q⟩, decrease)`: along −d the constraint decreases at this rate.

    Args:
        f, q: gradients of the objective and of the constraint, trees of the same structure.
    """
    square = trees.dot(q, q)
    vanishes = square < jnp.finfo(square.dtype).tiny
    missing = jnp.maximum(decrease - trees.dot(f, q), 0)
    return jnp.where(vanishes, jnp.zeros_like(missing), missing / jnp.where(vanishes, 1, square))
