"""MetaAug: calibration images are changed by a map that is learned, so that few of them suffice.

A network of full precision is replaced by one whose weights have a few bits. The lower problem
calibrates the step sizes of the rounding and the biases, y, on changed images; the upper one asks
that the result is close to the full network on the images as they are:

    f(x, y) = KL(full ‖ quantised) on the images + closeness(T_x)
    g(x, y) = KL(full ‖ quantised) on T_x(images)

`closeness` keeps the change of an image at a given size: none would be no augmentation.

Pham, Hoang, Nguyen, Le, Phung, Carneiro, Do. "MetaAug: meta-data augmentation for post-training
quantization". ECCV 2024, arXiv:2407.14726. Differs from the paper: T is a residual network with one
hidden layer, and the rounding has learned steps instead of learned directions.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.apps.few_steps.nets import scores, start
from bilevel.data import Data
from bilevel.driver import run
from bilevel.lower import Gradient
from bilevel.methods import BiOITD
from bilevel.problem import Problem
from bilevel.updates import FromOptax


def rounded(weights: Float[Array, "i o"], log_steps: Float[Array, " o"], bits: int):
    """The nearest of `2^bits` multiples of each column's step; its gradient skips the rounding."""
    half = 2 ** (bits - 1)
    steps = jnp.exp(log_steps)[None]
    scaled = jnp.clip(weights / steps, -half, half - 1)
    return steps * (scaled + jax.lax.stop_gradient(jnp.round(scaled) - scaled))


def to_nearest(net: PyTree, bits: int) -> PyTree:
    """Steps so that no weight is cut off, and the biases as they are: without calibration."""
    reach = 2 ** (bits - 1) - 0.5
    return [
        {"steps": jnp.log(jnp.abs(layer["weights"]).max(0) / reach), "bias": layer["bias"]}
        for layer in net
    ]


def quantized(net: PyTree, y: PyTree, bits: int) -> PyTree:
    """The network with rounded weights."""
    return [
        {"weights": rounded(layer["weights"], own["steps"], bits), "bias": own["bias"]}
        for layer, own in zip(net, y, strict=True)
    ]


def distance(net: PyTree, y: PyTree, images: Float[Array, "n d"], bits: int) -> Scalar:
    """Mean Kullback-Leibler divergence from the full to the quantised predictions, in nats."""
    full = jax.nn.log_softmax(scores(net, images))
    rough = jax.nn.log_softmax(scores(quantized(net, y, bits), images))
    return (jnp.exp(full) * (full - rough)).sum(1).mean()


def change(x: PyTree, images: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """`T_x`: images plus what a small network adds."""
    return images + scores(x, images)


def problem(net: PyTree, *, bits: int = 3, size: float = 0.1, closeness: float = 0.1) -> Problem:
    """The two losses; both batches are the calibration images.

    Args:
        size: root mean square of the change of a pixel that T is kept at.
        closeness: weight of the penalty on another size.
    """

    def upper(x, y, images):
        moved = jnp.sqrt((scores(x, images) ** 2).mean() + 1e-12)
        return distance(net, y, images, bits) + closeness * (moved / size - 1) ** 2

    def lower(x, y, images):
        return distance(net, y, change(x, images), bits)

    return Problem(upper, lower)


def calibrate(
    net: PyTree,
    images: Float[Array, "n d"],
    *,
    bits: int = 3,
    steps: int = 300,
    lower_steps: int = 2,
    step_size: float = 1e-3,
    lower_step: float = 2e-3,
    size: float = 0.1,
    key: Array,
) -> PyTree:
    """Calibrate on images that are changed by what is learned; y of the quantised network.

    Args:
        steps: of x, each with `lower_steps` steps of Adam for y.
        step_size, lower_step: of Adam, for x and y.
    """
    d = images.shape[1]
    losses, x0 = problem(net, bits=bits, size=size), start((d, 32, d), key=key)
    x0 = [x0[0], {"weights": 0.1 * x0[1]["weights"], "bias": x0[1]["bias"]}]
    # A root of zero, as Adam has where a unit is dead, has no derivative.
    lower = FromOptax(optax.adam, lower_step, eps_root=1e-10)
    method = BiOITD(FromOptax(optax.adam, step_size), lower, lower_steps=lower_steps)
    state = method.init(losses, x0, to_nearest(net, bits))
    return run(losses, method, state, data=Data(images, images), steps=steps)[0].y


def calibrate_raw(
    net: PyTree,
    images: Float[Array, "n d"],
    *,
    bits: int = 3,
    steps: int = 600,
    lower_step: float = 2e-3,
) -> PyTree:
    """The same steps on the images as they are."""
    losses = Problem(lambda x, y, images: 0.0, lambda x, y, z: distance(net, y, z, bits))
    solver = Gradient(FromOptax(optax.adam, lower_step), steps)
    return jax.jit(lambda y: solver.solve(losses, None, y, images).y)(to_nearest(net, bits))
