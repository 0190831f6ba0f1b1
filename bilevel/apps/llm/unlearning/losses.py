"""Forget and retain losses, as functions of log-probabilities of a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar, ScalarLike

from bilevel.typing import RandomKey

PerRow = Float[Array, " n"]
PerToken = Float[Array, "n time"]


def npo(ratio: PerRow, beta: ScalarLike) -> Scalar:
    """Negative preference optimisation: `−(2/β) E log σ(−β log(π/π_ref))`, bounded below by 0.

    Zhang, Lin, Bai, Mei. "Negative preference optimization: from catastrophic collapse to effective
    unlearning". COLM 2024, arXiv:2404.05868.

    Args:
        ratio: `log π(a|s) − log π_ref(a|s)` of each whole response, the sum over its tokens.
        beta: β. As it goes to 0 the gradient becomes that of `ascent` on whole responses.
    """
    beta = jnp.asarray(beta, ratio.dtype)
    return -2 / beta * jax.nn.log_sigmoid(-beta * ratio).mean()


def mean(each: PerToken, mask: Bool[Array, "n time"]) -> Scalar:
    """The mean over the tokens where the mask is true."""
    count = jnp.maximum(mask.sum(), 1).astype(each.dtype)
    return jnp.where(mask, each, 0).sum() / count


def likelihood(logprobs: PerToken, mask: Bool[Array, "n time"]) -> Scalar:
    """Mean negative log-probability of tokens: the retain loss of fine-tuning."""
    return -mean(logprobs, mask)


def apart(
    states: Float[Array, "n time width"],
    target: Float[Array, "*#batch width"],
    mask: Bool[Array, "n time"],
) -> Scalar:
    """Mean squared difference between the states at some tokens and a target.

    With `steering` as the target it is RMU, representation misdirection: bounded below by 0. With
    the states of another model it holds what a model computes. Li et al. "The WMDP benchmark:
    measuring and reducing malicious use with unlearning". ICML 2024, arXiv:2403.03218.
    """
    return mean(((states - target) ** 2).mean(axis=-1), mask)


def steering(width: int, length: ScalarLike, key: RandomKey) -> Float[Array, " width"]:
    """A random vector of a given length, which RMU steers states to."""
    drawn = jax.random.normal(key, (width,), jnp.float32)
    return drawn * (jnp.asarray(length, drawn.dtype) / jnp.linalg.norm(drawn))


def ascent(logprobs: PerToken, mask: Bool[Array, "n time"]) -> Scalar:
    """Gradient ascent, `−likelihood`: unbounded below, it falls for ever."""
    return -likelihood(logprobs, mask)
