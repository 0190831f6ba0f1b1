"""Pooling and resizing of the last axes."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax


def windows(x, size, stride, padding, dilation, ceil):
    """The arguments that `lax.reduce_window` takes for windows over the last axes.

    With `ceil` a last window may stick out, as long as it begins inside.
    """
    size, stride = tuple(size), tuple(stride or size)
    pads = []
    for n, k, s, p, d in zip(x.shape[-len(size) :], size, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        steps = math.ceil((n + 2 * p - reach) / s)
        steps -= steps * s >= n + p
        pads.append((p, max(p, steps * s + reach - n - p) if ceil else p))
    ahead = x.ndim - len(size)
    one = (1,) * ahead
    return one + size, one + stride, ((0, 0),) * ahead + tuple(pads), None, one + tuple(dilation)


def max_pool(x, size, stride=(), padding=(0, 0), dilation=(1, 1), ceil=False):
    least = np.array(-np.inf, x.dtype)
    return (
        lax.reduce_window(x, least, lax.max, *windows(x, size, stride, padding, dilation, ceil)),
    )


def avg_pool(x, size, stride=(), padding=(0, 0), ceil=False, count_padding=True, divisor=None):
    """Padding counts as zeros, or not at all; what sticks out beyond it never counts."""
    ones = (1,) * len(size)
    where = windows(x, size, stride, padding, ones, ceil)
    sums = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, *where)
    if divisor:
        return sums / divisor
    count = np.full(x.shape[-len(size) :], 1.0, np.float32)
    count = np.pad(count, [(p, p) for p in padding], constant_values=float(count_padding))
    rest = tuple((0, high - low) for low, high in where[2][-len(size) :])
    n = len(size)
    counts = lax.reduce_window(count, np.float32(0), lax.add, where[0][-n:], where[1][-n:], rest)
    return sums / counts.astype(x.dtype)


def mixed(x, *matrices):
    """Each of the last axes times a matrix of shape (new, old)."""
    for back, matrix in enumerate(reversed(matrices)):
        axis = x.ndim - 1 - back
        x = jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ jnp.asarray(matrix.T, x.dtype), -1, axis)
    return x


def bins(old, new):
    """Means of `new` stretches of nearly equal length, as a matrix."""
    place, edge = np.arange(old), np.arange(new)[:, None]
    inside = (place >= edge * old // new) & (place < -((edge + 1) * old // -new))
    return inside / inside.sum(1, keepdims=True)


def adaptive_avg_pool(x, sizes):
    olds = x.shape[-len(sizes) :]
    return mixed(x, *(bins(old, new) for old, new in zip(olds, sizes, strict=True)))


def new_lengths(x, sizes, scales):
    """Of each of the last two axes: its length, the new one, and old pixels per new one."""
    olds = x.shape[2:]
    sizes = sizes or [math.floor(old * scale) for old, scale in zip(olds, scales, strict=True)]
    scales = scales or [new / old for new, old in zip(sizes, olds, strict=True)]
    return zip(olds, sizes, (1 / scale for scale in scales), strict=True)


def nearest(old, new, scale):
    chosen = np.minimum(np.floor(np.arange(new) * scale), old - 1)
    return np.arange(old) == chosen[:, None]


def linear(old, new, scale, corners):
    """Weights of the two old pixels beside each new one."""
    place = np.arange(new)
    place = place * ((old - 1) / max(new - 1, 1)) if corners else (place + 0.5) * scale - 0.5
    place = np.clip(place, 0, old - 1)
    return np.maximum(0, 1 - np.abs(np.arange(old) - place[:, None]))


def upsample_nearest(x, sizes, scales):
    return mixed(x, *(nearest(*lengths) for lengths in new_lengths(x, sizes, scales)))


def upsample_linear(x, sizes, corners, scales):
    return mixed(x, *(linear(*lengths, corners) for lengths in new_lengths(x, sizes, scales)))


OPERATIONS = {
    "max_pool2d_with_indices.default": max_pool,
    "avg_pool2d.default": avg_pool,
    "adaptive_avg_pool1d.default": adaptive_avg_pool,
    "adaptive_avg_pool2d.default": adaptive_avg_pool,
    "upsample_nearest2d.vec": upsample_nearest,
    "upsample_bilinear2d.vec": upsample_linear,
}
