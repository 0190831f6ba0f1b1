"""Which weights are kept: masks of zeros and ones from scores."""

import abc
import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from bilevel.fields import Checked, fraction

Arrays = Mapping[str, Float[Array, "..."]]


class AbstractMasking(Checked):
    """Masks from the sizes of the scores of weight arrays, given by name."""

    @abc.abstractmethod
    def masks(self, sizes: dict[str, Array]) -> dict[str, Array]:
        """Which entries are kept, shaped like the non-negative sizes."""

    def __call__(self, scores: Arrays) -> dict[str, Array]:
        """Zeros and ones, shaped like the scores and of their dtypes; no gradient passes."""
        sizes = {name: jnp.abs(jax.lax.stop_gradient(s)) for name, s in scores.items()}
        return {name: m.astype(scores[name].dtype) for name, m in self.masks(sizes).items()}


class Unstructured(AbstractMasking):
    """The share `density` of all weights, over all arrays together, with the largest scores."""

    density: ScalarLike = fraction(0.1)

    def masks(self, sizes):
        flat = jnp.concatenate([s.ravel() for s in sizes.values()])
        kept, masks = largest(flat, share(self.density, flat.size)), {}
        for name, s in sizes.items():
            masks[name], kept = kept[: s.size].reshape(s.shape), kept[s.size :]
        return masks


class NofM(AbstractMasking):
    """The n largest scores of each m consecutive inputs of an output, such as 2 of 4.

    Attributes:
        inputs: the axis of the inputs: -2 for `(..., in, out)`, 1 for PyTorch's `(out, in, ...)`.
    """

    n: int = eqx.field(static=True, default=2)
    m: int = eqx.field(static=True, default=4)
    inputs: int = eqx.field(static=True, default=-2)

    def masks(self, sizes):
        return {name: self._mask(name, s) for name, s in sizes.items()}

    def _mask(self, name: str, s: Array) -> Array:
        s = jnp.moveaxis(s, self.inputs, -1)
        if s.shape[-1] % self.m:
            raise ValueError(
                f"{name} has {s.shape[-1]} inputs, which groups of {self.m} do not divide; leave "
                "it out of the pruning, or take another m."
            )
        groups = s.reshape(-1, self.m)
        kept = jax.vmap(lambda group: largest(group, self.n))(groups)
        return jnp.moveaxis(kept.reshape(s.shape), -1, self.inputs)


class Slices(AbstractMasking):
    """In each array the share `density` of its slices with the largest norm of scores.

    Attributes:
        axis: along which slices are counted. Whole filters lie along the outputs (-1; 0 in
            PyTorch), whole channels along the inputs (-2; 1 in PyTorch).
    """

    density: ScalarLike = fraction(0.5)
    axis: int = eqx.field(static=True, default=-1)

    def masks(self, sizes):
        return {name: self._mask(s) for name, s in sizes.items()}

    def _mask(self, s: Array) -> Array:
        s = jnp.moveaxis(s, self.axis, 0)
        norms = jnp.sqrt(jnp.sum(s.reshape(len(s), -1) ** 2, axis=1))
        kept = largest(norms, share(self.density, len(s)))
        kept = jnp.broadcast_to(kept.reshape(-1, *[1] * (s.ndim - 1)), s.shape)
        return jnp.moveaxis(kept, 0, self.axis)


def share(density: ScalarLike, size: int) -> Int[Array, ""]:
    """How many of `size` entries are kept: at least one."""
    return jnp.maximum(1, jnp.round(jnp.asarray(density) * size).astype(int))


def largest(sizes: Float[Array, " n"], k: int | Int[Array, ""]) -> Bool[Array, " n"]:
    """Marks exactly the k largest of non-negative numbers, the first ones where some are equal.

    The bits of non-negative floating numbers are ordered as they are, so the threshold is found
    bit by bit: several times faster than sorting on a CPU, and k may be traced.
    """
    kind = jnp.dtype(f"uint{8 * sizes.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(sizes, kind)

    def set_bit(i, threshold):
        higher = threshold | (jnp.ones((), kind) << (8 * kind.itemsize - 1 - i).astype(kind))
        return jnp.where(jnp.sum(bits >= higher) >= k, higher, threshold)

    threshold = jax.lax.fori_loop(1, 8 * kind.itemsize, set_bit, jnp.zeros((), kind))
    above, equal = bits > threshold, bits == threshold
    return above | (equal & (jnp.cumsum(equal) <= k - jnp.sum(above)))


def kept(masks: Arrays) -> float:
    """The share of ones over all masks."""
    return sum(float(m.sum()) for m in masks.values()) / sum(
        math.prod(m.shape) for m in masks.values()
    )
