"""The two losses, and two regularizers with weights to be learned."""

import abc
import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.problem import Problem

Pictures = Float[Array, "n height width"]


class Regularizer(eqx.Module):
    """A convex function of pictures with weights x; it is smooth, so that y*(x) is, too."""

    @abc.abstractmethod
    def start(self) -> PyTree:
        """Weights to start from."""

    @abc.abstractmethod
    def __call__(self, x: PyTree, y: Pictures) -> Scalar:
        """R_x, summed over the pictures."""


class TotalVariation(Regularizer):
    """`R_x(y) = eʷ Σ √(‖∇y‖² + e²ˢ)` over the pixels, with `x = {"weight": w, "smoothing": s}`.

    Rudin, Osher, Fatemi. "Nonlinear total variation based noise removal algorithms".
    Physica D 1992.
    """

    def start(self):
        return {"weight": jnp.log(0.05), "smoothing": jnp.log(0.05)}

    def __call__(self, x, y):
        down = jnp.diff(y, axis=1, append=y[:, -1:, :])
        right = jnp.diff(y, axis=2, append=y[:, :, -1:])
        smooth = jnp.exp(2 * x["smoothing"])
        return jnp.exp(x["weight"]) * jnp.sqrt(down**2 + right**2 + smooth).sum()


class FieldsOfExperts(Regularizer):
    """`R_x(y) = Σ_k e^{w_k} Σ √((c_k ∗ y)² + e²ˢ)` over the pixels: filters c_k and weights w_k.

    The filters are `c_k = Σ_j filters[k, j] d_j` for the cosine functions d_j of a square of
    `size` pixels, without the constant one, so that no filter sees the mean brightness.
    `x = {"weights": (K,), "filters": (K, K), "smoothing": ()}` with `K = size² − 1`.

    Roth, Black. "Fields of experts". IJCV 2009. Chen, Ranftl, Pock. "Insights into analysis
    operator learning". IEEE TIP 2014.
    """

    size: int = eqx.field(static=True, default=3)

    def start(self):
        count = self.size**2 - 1
        weights = jnp.full(count, jnp.log(0.03))
        return {"weights": weights, "filters": jnp.eye(count), "smoothing": jnp.log(0.05)}

    def filters(self, x) -> Float[Array, "K size size"]:
        """The filters that the weights stand for."""
        return (x["filters"] @ cosines(self.size)).reshape(-1, self.size, self.size)

    def __call__(self, x, y):
        # Patches and one matrix product: XLA is slow with convolutions in a loop on a CPU.
        patches = jnp.stack([_shifted(y, i, j, self.size) for i, j in _square(self.size)])
        responses = jnp.tensordot(x["filters"] @ cosines(self.size), patches, axes=1)
        penalties = jnp.sqrt(responses**2 + jnp.exp(2 * x["smoothing"])).sum((1, 2, 3))
        return jnp.exp(x["weights"]) @ penalties


def cosines(size: int) -> Float[Array, "K pixels"]:
    """The discrete cosine functions of a square but the constant one, of norm 1."""
    place = (np.arange(size) + 0.5) * np.pi / size
    waves = np.cos(np.arange(size)[:, None] * place)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    return jnp.asarray(np.kron(waves, waves)[1:], jnp.result_type(float))


def _square(size: int):
    return itertools.product(range(size), repeat=2)


def _shifted(y: Pictures, down: int, right: int, size: int) -> Pictures:
    """The pixel at this place of every patch that lies within the picture."""
    height, width = (length - size + 1 for length in y.shape[1:])
    return y[:, down : down + height, right : right + width]


def problem(regularizer: Regularizer) -> Problem:
    """The two losses; the upper batch holds clean pictures, the lower one their noisy versions.

    `y` is shaped like them. The lower loss is `1/pixels`-strongly convex in it.
    """
    return Problem(_upper, eqx.Partial(_lower, regularizer))


def _upper(x: PyTree, y: Pictures, clean: Pictures) -> Scalar:
    return ((y - clean) ** 2).mean() / 2


def _lower(regularizer: Regularizer, x: PyTree, y: Pictures, noisy: Pictures) -> Scalar:
    return (((y - noisy) ** 2).sum() / 2 + regularizer(x, y)) / y.size
