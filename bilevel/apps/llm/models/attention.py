"""Scaled dot-product attention, as an argument of the decoder.

Every function here has the signature `attention(q, k, v, mask, window) -> mixed values`:

q: `(batch, queries, heads, head_dim)`; k and v: `(batch, keys, kv_heads, head_dim)`.
mask: `(batch or 1, queries, keys)`, true where a query attends to a key. `None` means causal
attention without padding and with as many queries as keys. Then `window` may limit the number of
keys before a query.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Finite, so that a row that attends to nothing (padding) and its derivatives stay finite.
HIDDEN = -1e30

Mask = Bool[Array, "batch queries keys"]


def plain(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads dim"],
    mask: Mask | None = None,
    window: int | None = None,
) -> Float[Array, "batch queries heads dim"]:
    """Softmax attention in plain JAX, with all derivatives. Scores have at least float32."""
    batch, queries, heads, dim = q.shape
    groups = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", groups, k, preferred_element_type=accurate(q))
    if mask is None:
        mask = causal(queries, window)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(q.shape)


def fused(q, k, v, mask=None, window=None):
    """`jax.nn.dot_product_attention` in its XLA implementation, with all derivatives."""
    return _dot_product(q, k, v, mask, window, "xla")


def flash(q, k, v, mask=None, window=None):
    """cuDNN's flash attention: NVIDIA GPUs, float16 or bfloat16, first derivatives only.

    For sampling and first-order methods; a Hessian product through it fails.
    """
    return _dot_product(q, k, v, mask, window, "cudnn")


def causal(length: int, window: int | None = None) -> Bool[Array, "1 length length"]:
    """The causal mask of a row without padding: true where a query attends to a key."""
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    visible = back >= 0
    return (visible if window is None else visible & (back < window))[None]


def accurate(x: Array) -> jnp.dtype:
    """The dtype in which norms, softmaxes and scores are computed: at least float32."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _dot_product(q, k, v, mask, window, implementation):
    masking: dict[str, Any] = {"is_causal": True}
    if mask is not None:
        masking = {"mask": jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))[:, None]}
    elif window is not None:
        masking["local_window_size"] = (window - 1, 0)
    with jax.numpy_dtype_promotion("standard"):  # it mixes bfloat16 and float32 inside
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation, **masking)
