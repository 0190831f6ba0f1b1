"""The best response of a dense network, layer by layer: a gain per unit, linear in x."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import trees
from bilevel.lower.responses.base import AbstractResponse
from bilevel.typing import Lower, RandomKey, Upper


class DenseLayer(NamedTuple):
    """Parameters of the response of one layer with `in` inputs and `out` units, for n entries of x.

    `weight(x) = W0 + diag(V x) W1` and `bias(x) = b0 + (C x) * b1`.
    """

    W0: Float[Array, "out in"]
    W1: Float[Array, "out in"]
    V: Float[Array, "out n"]
    b0: Float[Array, " out"]
    b1: Float[Array, " out"]
    C: Float[Array, "out n"]

    def __call__(self, flat: Float[Array, " n"]) -> dict[str, Array]:
        flat = flat.astype(self.W0.dtype)
        return {
            "weight": self.W0 + (self.V @ flat)[:, None] * self.W1,
            "bias": self.b0 + (self.C @ flat) * self.b1,
        }


class HyperDense(AbstractResponse):
    """The structured response of self-tuning networks, about twice the memory of the network.

    y is any tree of layers `{"weight": (out, in), "bias": (out,)}`, such as the list of layers of
    a perceptron; a gain linear in x scales the rows of a second weight matrix in each. Starts
    with W0 and b0 at y0, and small random gains. The gains learn fastest where x is of order one:
    let the problem shift an x that starts far from zero, such as a log-penalty.

    Reference: MacKay et al. "Self-Tuning Networks". ICLR 2019, arXiv:1903.03088.
    """

    def init(self, x: Upper, y0: Lower, key: RandomKey) -> Any:
        """Gains normal with deviation 0.01, W1 and b1 uniform within `1/√in`.

        Raises:
            ValueError: y0 is not a tree of layers.
        """
        nodes, treedef = jax.tree.flatten(y0, is_leaf=_is_layer)
        if not nodes or not all(map(_is_layer, nodes)):
            raise ValueError(
                f"HyperDense models layers, and y0 is {jax.tree.map(np.shape, y0)}; a tree of "
                '{"weight": (out, in), "bias": (out,)} is needed. responses.Affine takes any tree.'
            )
        keys = jax.random.split(key, len(nodes))
        n = trees.size(x)
        return treedef.unflatten(
            _layer(node, n, key) for node, key in zip(nodes, keys, strict=True)
        )

    def __call__(self, phi: Any, x: Upper) -> Lower:
        flat = ravel_pytree(trees.widen(x))[0]
        return jax.tree.map(lambda layer: layer(flat), phi, is_leaf=_is_parameters)

    def precondition(self, gradient: Any, x: Upper, sigma: Upper) -> Any:
        return gradient


def _layer(y: Mapping[str, Array], n: int, key: RandomKey) -> DenseLayer:
    W0, b0 = trees.copy((y["weight"], y["bias"]))
    out, inputs = W0.shape
    weight, bias, gain, shift = jax.random.split(key, 4)
    bound = inputs**-0.5
    return DenseLayer(
        W0=W0,
        W1=jax.random.uniform(weight, W0.shape, W0.dtype, -bound, bound),
        V=0.01 * jax.random.normal(gain, (out, n), W0.dtype),
        b0=b0,
        b1=jax.random.uniform(bias, b0.shape, b0.dtype, -bound, bound),
        C=0.01 * jax.random.normal(shift, (out, n), b0.dtype),
    )


def _is_layer(node: Any) -> bool:
    if not isinstance(node, Mapping) or set(node) != {"weight", "bias"}:
        return False
    weight, bias = np.shape(node["weight"]), np.shape(node["bias"])
    return len(weight) == 2 and bias == weight[:1]


def _is_parameters(node: Any) -> bool:
    return isinstance(node, DenseLayer)
