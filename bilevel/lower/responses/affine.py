"""An affine best response: exact where the lower loss is quadratic, local elsewhere."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import trees
from bilevel.lower.responses.base import AbstractResponse
from bilevel.typing import Lower, RandomKey, Upper


class AffineParameters(NamedTuple):
    slope: Lower  # like y, each leaf with one more axis: the entries of the ravelled x
    offset: Lower  # like y


class Affine(AbstractResponse):
    """`ŷ(x) = W x + w` with a dense slope W: `1 + dim x` copies of y.

    With a lower loss quadratic in (x, y) the fit has one solution, `W = dy*/dx` and
    `w = y*(0)`, at any scale of the perturbations above zero; elsewhere W and w are local and off
    by the order of its square. Starts from `W = 0`, `w = y0`.

    Attributes:
        centred: step as if the model were written about the current x, `ŷ(x + e) = b + W e`, with
            the step of each column of W divided by its `σ²`. Then W learns as fast as b, at any x
            and σ, and a step of y's size, about 1/L, suits both. Without, the plain gradient in
            (W, w), whose conditioning is that of `E (x + e)(x + e)ᵀ`. The limit is the same.
    """

    centred: bool = eqx.field(static=True, default=True)

    def init(self, x: Upper, y0: Lower, key: RandomKey) -> AffineParameters:
        n = trees.size(x)
        slope = trees.map(lambda leaf: jnp.zeros((*jnp.shape(leaf), n), leaf.dtype), y0)
        return AffineParameters(slope, trees.copy(y0))

    def __call__(self, phi: AffineParameters, x: Upper) -> Lower:
        flat = _ravel(x)
        return trees.map(lambda W, w: _product(W, flat) + w, *phi)

    def precondition(self, gradient: AffineParameters, x: Upper, sigma: Upper) -> AffineParameters:
        if not self.centred:
            return gradient
        flat, variance = _ravel(x), _ravel(sigma) ** 2

        def about_x(g_W, g_w):  # E ∇_y g (x + e)ᵀ and E ∇_y g; the direction of W is E ∇_y g eᵀ/σ²
            centred = g_W - jnp.tensordot(g_w, flat.astype(g_w.dtype), 0)
            return centred / jnp.broadcast_to(variance.astype(g_W.dtype), g_W.shape)

        slope = trees.map(about_x, *gradient)
        # w = b − W x, so it moves against the direction of b less that of W, times x.
        offset = trees.map(lambda d_W, d_b: d_b - _product(d_W, flat), slope, gradient.offset)
        return AffineParameters(slope, offset)


def _ravel(x: Upper) -> Float[Array, " n"]:
    return ravel_pytree(trees.widen(x))[0]


def _product(W: Float[Array, "*m n"], flat: Float[Array, " n"]) -> Float[Array, "*m"]:
    """In full precision: on accelerators the default would lose a small perturbation of x."""
    return jnp.matmul(W, flat.astype(W.dtype), precision=jax.lax.Precision.HIGHEST)
