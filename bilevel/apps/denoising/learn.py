"""Learning the weights, denoising with them, and how good that is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from bilevel.apps.denoising.problem import Pictures, Regularizer, problem
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.lower import NewtonCG
from bilevel.methods import MAID
from bilevel.selection import solve


def learn(
    clean: Pictures, noisy: Pictures, regularizer: Regularizer, *, steps: int = 30, **options: Any
) -> Result:
    """Learn the weights of a regularizer from pairs of pictures by MAID, which needs no tuning.

    Every step lowers the upper loss for certain, up to rounding; use double precision. The
    history's `bound` is on the error of the hypergradient, in its own norm.

    Args:
        clean, noisy: pictures of one size, numbers around 0 to 1.
        options: handed to `bl.solve`.

    Returns:
        `Result`: `x` are the weights, `y` the denoised pictures.

    Raises:
        ValueError: the pictures are not of one shape.
    """
    if clean.ndim != 3 or clean.shape != noisy.shape:
        raise ValueError(
            f"clean has shape {clean.shape} and noisy {noisy.shape}; both must be the same, "
            "(pictures, height, width)."
        )
    n = clean.size
    return solve(
        problem(regularizer),
        MAID(mu=1 / n, upper_L=1 / n, upper_cross=0.0),
        regularizer.start(),
        noisy,
        data=Data(upper=clean, lower=noisy),
        steps=steps,
        **{"log_every": 1, **options},
    )


def denoise(
    x: PyTree, noisy: Pictures, regularizer: Regularizer, *, accuracy: float = 1e-4
) -> Pictures:
    """The minimiser of the lower loss, with a root mean squared error of at most `accuracy`."""
    return _denoise(x, noisy, regularizer, accuracy)


@jax.jit
def _denoise(x, noisy, regularizer, accuracy):
    tol = accuracy / jnp.sqrt(jnp.asarray(noisy.size, noisy.dtype))  # ‖y − y*‖ ≤ pixels · ‖∇g‖
    return NewtonCG(tol).solve(problem(regularizer), x, noisy, noisy).y


def psnr(clean: Pictures, y: Pictures) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio in decibels, `−10 log₁₀` of the mean squared error of each."""
    with np.errstate(divide="ignore"):  # of a picture without an error it is infinite
        return -10 * np.log10(((np.asarray(y) - np.asarray(clean)) ** 2).mean((1, 2)))


def pooled_psnr(clean: Pictures, y: Pictures) -> float:
    """The same of all pictures together, which is what learning raises."""
    return float(psnr(clean.reshape(1, -1, 1), y.reshape(1, -1, 1))[0])
