"""Convolution, normalisation, dropout, embeddings and softmax, channels after the batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def convolve(x, w, bias, stride, padding, dilation, transposed, output_padding, groups):
    """The transposed one is a convolution of x with zeros between its entries."""
    dtype = jnp.result_type(x, w)
    x, w, size = x.astype(dtype), w.astype(dtype), w.shape[2:]
    # One number stands for all axes.
    stride, padding, dilation, output_padding = (
        tuple(one) * (len(size) // len(one)) for one in (stride, padding, dilation, output_padding)
    )
    spread = (1,) * len(size)
    pads = [(p, p) for p in padding]
    if transposed:
        ends = [d * (k - 1) - p for d, k, p in zip(dilation, size, padding, strict=True)]
        pads = [(end, end + more) for end, more in zip(ends, output_padding, strict=True)]
        spread, stride = stride, spread
        w = jnp.flip(w, range(2, w.ndim)).reshape(groups, -1, *w.shape[1:])
        w = w.swapaxes(1, 2).reshape(-1, w.shape[1], *size)
    out = lax.conv_general_dilated(x, w, stride, pads, spread, dilation, feature_group_count=groups)
    return out if bias is None else out + per_channel(bias, out)


def per_channel(a, x):
    """A number a channel, shaped to go with x."""
    return a.reshape(-1, *(1,) * (x.ndim - 2))


def scaled(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def standardised(x, mean, variance, eps):
    inverse = lax.rsqrt(variance + eps)
    return (x - mean) * inverse, inverse


def normalised(x, axes, eps):
    """Standardised over axes; the mean, and the inverse of the standard deviation."""
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    out, inverse = standardised(x, mean, variance, eps)
    return out, mean, inverse


def batch_norm_kept(x, weight, bias, mean, variance, momentum, eps):
    """By the running statistics."""
    mean, variance = per_channel(mean, x), per_channel(variance, x)
    out, _ = standardised(x, mean, variance, eps)
    return scaled(out, *(None if a is None else per_channel(a, x) for a in (weight, bias))), (), ()


def batch_norm_of_batch(x, weight, bias, training, momentum, eps):
    """By the statistics of the batch."""
    out, mean, inverse = normalised(x, (0, *range(2, x.ndim)), eps)
    out = scaled(out, *(None if a is None else per_channel(a, x) for a in (weight, bias)))
    return out, mean.ravel(), inverse.ravel()


def batch_norm(x, weight, bias, mean, variance, training, momentum, eps):
    """The new running statistics come fourth and fifth; the variance is the unbiased one."""
    if not training:
        return *batch_norm_kept(x, weight, bias, mean, variance, momentum, eps), mean, variance
    axes, rows = (0, *range(2, x.ndim)), x.size // x.shape[1]
    new = x.mean(axes), x.var(axes) * (rows / (rows - 1))
    kept = [(1 - momentum) * a + momentum * b for a, b in zip((mean, variance), new, strict=True)]
    return *batch_norm_of_batch(x, weight, bias, training, momentum, eps), *kept


def layer_norm(x, shape, weight, bias, eps):
    out, mean, inverse = normalised(x, tuple(range(-len(shape), 0)), eps)
    return scaled(out, weight, bias), mean, inverse


def group_norm(x, weight, bias, n, channels, pixels, groups, eps):
    out, mean, inverse = normalised(x.reshape(n, groups, -1), (2,), eps)
    out = out.reshape(x.shape)
    out = scaled(out, *(None if a is None else per_channel(a, x) for a in (weight, bias)))
    return out, mean.reshape(n, groups), inverse.reshape(n, groups)


def embedding(table, rows, padding_idx=-1, *_):
    """The row `padding_idx` gets no gradient. A row outside the table is NaN."""
    found = jnp.take(table, rows, 0, mode="fill")
    if padding_idx < 0:
        return found
    return jnp.where((rows == padding_idx)[..., None], lax.stop_gradient(found), found)


def dropout(x, p, train, *, key: Any = None):
    """The entries kept, divided by the share that is kept; and which they are."""
    if train is False or p == 0:
        return x, jnp.ones(x.shape, bool)
    keep = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(keep, x / (1 - p if p < 1 else 1), 0), keep


def bernoulli(x, p, *, key):
    """Ones with probability p, and zeros."""
    return jax.random.bernoulli(key, p, x.shape).astype(x.dtype)


OPERATIONS = {
    "convolution.default": convolve,
    "_native_batch_norm_legit_functional.default": batch_norm,
    "_native_batch_norm_legit.no_stats": batch_norm_of_batch,
    "_native_batch_norm_legit_no_training.default": batch_norm_kept,
    "native_layer_norm.default": layer_norm,
    "native_group_norm.default": group_norm,
    "embedding.default": embedding,
    "_softmax.default": lambda x, dim, _: jax.nn.softmax(x, dim),
    "_log_softmax.default": lambda x, dim, _: jax.nn.log_softmax(x, dim),
    "native_dropout.default": dropout,
    "bernoulli.p": bernoulli,
}
RANDOM = frozenset({"native_dropout.default", "bernoulli.p"})
