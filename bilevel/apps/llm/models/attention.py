"""Scaled dot-product attention, as an argument of the decoder.

Every function here has the signature `attention(q, k, v, mask, window) -> mixed values`:

q: `(batch, queries, heads, head_dim)`; k and v: `(batch, keys, kv_heads, head_dim)`.
mask: `(batch or 1, queries, keys)`, true where a query sees a key. None stands for causal
attention without padding, as many queries as keys; then `window` may bound how far back it sees.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Not infinite: a row that sees nothing (padding) stays finite, and so do its derivatives.
HIDDEN = -1e30

Mask = Bool[Array, "batch queries keys"]


def plain(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads dim"],
    mask: Mask | None = None,
    window: int | None = None,
) -> Float[Array, "batch queries heads dim"]:
    """Softmax of scores, written out: has every derivative. Scores are float32 or better."""
    batch, queries, heads, dim = q.shape
    groups = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", groups, k, preferred_element_type=accurate(q))
    if mask is None:
        mask = causal(queries, window)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(q.shape)


def fused(q, k, v, mask=None, window=None):
    """XLA's own form of `plain`: every derivative, less of our code in the way of the compiler."""
    return _dot_product(q, k, v, mask, window, "xla")


def flash(q, k, v, mask=None, window=None):
    """cuDNN's flash attention: NVIDIA GPUs, float16 or bfloat16, first derivatives only.

    Made for sampling and for first-order methods; a Hessian product through it fails.
    """
    return _dot_product(q, k, v, mask, window, "cudnn")


def causal(length: int, window: int | None = None) -> Bool[Array, "1 length length"]:
    """Who sees whom in a row without padding."""
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    visible = back >= 0
    return (visible if window is None else visible & (back < window))[None]


def accurate(x: Array) -> jnp.dtype:
    """The type in which norms, softmaxes and scores are computed: float32 or better."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _dot_product(q, k, v, mask, window, implementation):
    masking: dict[str, Any] = {"is_causal": True}
    if mask is not None:
        masking = {"mask": jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))[:, None]}
    elif window is not None:
        masking["local_window_size"] = (window - 1, 0)
    with jax.numpy_dtype_promotion("standard"):  # it mixes bfloat16 and float32 inside
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation, **masking)
