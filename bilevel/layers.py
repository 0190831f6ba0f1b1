"""Convolutions as patches and a matrix product, for models that are trained inside a loop.

On a CPU, XLA runs a convolution inside `lax.scan`, `fori_loop` or `while_loop` 13 to 29 times
slower than outside of one, and every method of this library loops. Matrix products are not
affected.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def patches(
    images: Float[Array, "n height width channels"], size: int = 3
) -> Float[Array, "n height width patch"]:
    """The square around each pixel, padded with zeros: `size² · channels` numbers, in HWIO order.

    Raises:
        ValueError: the size is even, or the images do not have four axes.
    """
    if size % 2 != 1 or images.ndim != 4:
        raise ValueError(
            f"size is {size} and images have shape {images.shape}; an odd size and "
            "(n, height, width, channels) are needed."
        )
    half, (height, width) = size // 2, images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (half, half), (half, half), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1)


def conv(
    images: Float[Array, "n height width channels"], kernel: Float[Array, "size size channels out"]
) -> Float[Array, "n height width out"]:
    """`lax.conv_general_dilated` with stride 1 and padding SAME, NHWC and HWIO."""
    return patches(images, kernel.shape[0]) @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(images: Float[Array, "n height width channels"]) -> Float[Array, "n h w channels"]:
    """The largest of each 2 by 2 pixels; an odd last row or column is left out."""
    n, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
