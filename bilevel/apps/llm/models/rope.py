"""Rotary position embeddings: plain, linearly scaled, and Llama 3's."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel.apps.llm.models.attention import accurate
from bilevel.apps.llm.models.config import Config, LinearScaling, Llama3Scaling


def frequencies(config: Config) -> np.ndarray:
    """Radians per position, for each rotated pair of a head."""
    rope, dim = config.rope, config.rotary_dim
    per_token = rope.theta ** (-np.arange(0, dim, 2) / dim)
    match rope.scaling:
        case None:
            return per_token
        case LinearScaling(factor):
            return per_token / factor
        case Llama3Scaling(factor, low, high, length):
            rotations_in_context = (
                length * per_token / (2 * np.pi)
            )  # in the context of the first training
            kept = np.clip((rotations_in_context - low) / (high - low), 0, 1)
            return per_token * (kept + (1 - kept) / factor)


def rotations(
    config: Config, positions: Int[Array, "batch time"], like: Array
) -> tuple[Array, Array]:
    """Cosine and sine `(batch, time, 1, rotary_dim / 2)`, of the type of another array."""
    inv_freq = jnp.asarray(frequencies(config), accurate(like))[None, None]
    angles = (positions.astype(inv_freq.dtype)[..., None] * inv_freq)[:, :, None]
    return jnp.cos(angles).astype(like.dtype), jnp.sin(angles).astype(like.dtype)


def rotate(x: Float[Array, "batch time heads dim"], rotation: tuple[Array, Array]) -> Array:
    """Entries i and i + rotary_dim / 2 of a head turn together; the rest of the head stays."""
    cos, sin = rotation
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def positions_of(segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """The number of earlier tokens of the same sequence; at padding, that of the last token."""
    valid, last = segments > 0, jax.lax.cummax(segments, axis=1)
    order = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(segments > before, order, 0), axis=1)
    return jnp.maximum(order - start, 0)
