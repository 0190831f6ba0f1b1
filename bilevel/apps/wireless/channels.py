"""Channels, the sum rate, and WMMSE, the algorithm that networks are compared with.

Shi, Razaviyayn, Luo, He. "An iteratively weighted MMSE approach to distributed sum-utility
maximization for a MIMO interfering broadcast channel". IEEE Trans. Signal Process. 2011.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Gains = Float[Array, "*n users users"]  # entry (k, j): amplitude from transmitter j to receiver k
KINDS = ("rayleigh", "rice", "near", "far")


def channels(kind: str, n: int, users: int = 5, seed: int = 0) -> Float[np.ndarray, "n k k"]:
    """Random amplitudes, for noise of power 1.

    Args:
        kind: "rayleigh" (the size of a complex normal number), "rice" (with a line of sight),
            "near" and "far" (places in squares of 10 m and 50 m, path loss `1/(1 + d²)`, and
            Rayleigh fading).

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}.")
    draw = np.random.default_rng(seed)
    normal = draw.normal(size=(2, n, users, users)) / np.sqrt(2)
    fading = normal[0] + 1j * normal[1]
    if kind == "rayleigh":
        return abs(fading)
    if kind == "rice":
        return abs(1 + fading) / np.sqrt(2)
    side = {"near": 10, "far": 50}[kind]
    to, of = draw.uniform(0, side, (2, n, users, 2))
    distance = np.linalg.norm(to[:, :, None] - of[:, None], axis=-1)
    return abs(fading) / np.sqrt(1 + distance**2)


def rate(gains: Gains, power: Float[Array, "*n users"]) -> Float[Array, "*n"]:
    """Bits per second and hertz, of all users together."""
    received = gains**2 * power[..., None, :]
    signal = jnp.diagonal(received, axis1=-2, axis2=-1)
    others = received.sum(-1) - signal
    return jnp.log2(1 + signal / (1 + others)).sum(-1)


def wmmse(gains: Gains, steps: int = 100, most: float = 1.0) -> Float[Array, "*n users"]:
    """Powers from 0 to `most` at a stationary point of the rate, from full power."""
    return history(gains, steps, most)[-1]


def history(gains: Gains, steps: int, most: float = 1.0) -> Float[Array, "t *n users"]:
    """The powers after each step; the rate never falls."""
    direct = jnp.diagonal(gains, axis1=-2, axis2=-1)
    squares = gains**2

    def step(b, _):
        heard = 1 + jnp.einsum("...kj,...j->...k", squares, b**2)
        f = direct * b / heard
        w = 1 / (1 - f * b * direct)
        harm = jnp.einsum("...j,...jk->...k", w * f**2, squares)
        b = jnp.clip(w * f * direct / harm, 0, most**0.5)
        return b, b**2

    start = jnp.full_like(direct, most**0.5)
    return jax.lax.scan(step, start, None, length=steps)[1]
