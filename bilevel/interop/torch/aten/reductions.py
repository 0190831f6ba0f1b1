"""Sums, means and the like over axes, and products of matrices."""

import jax.numpy as jnp

from bilevel.interop.torch.aten.shapes import number_type


def axes(dims):
    """PyTorch's: one axis, several, or none for all."""
    return dims if isinstance(dims, int) else tuple(dims or ()) or None


def total(a, dims=None, keepdim=False, *, dtype=None):
    return jnp.sum(a, axes(dims), keepdims=keepdim, dtype=number_type(dtype))


def mean(a, dims=None, keepdim=False, *, dtype=None):
    return jnp.mean(a, axes(dims), keepdims=keepdim, dtype=number_type(dtype))


def var(a, dims=None, *, correction=1, keepdim=False):
    return jnp.var(a, axes(dims), ddof=1 if correction is None else correction, keepdims=keepdim)


def over(reduce):
    return lambda a, dims=None, keepdim=False: reduce(a, axes(dims), keepdims=keepdim)


def first(arg):
    """`max` or `min` of one axis, with its place; the derivative is that of the first of equals."""

    def reduce(a, dim, keepdim=False):
        place = arg(a, axis=dim, keepdims=True)
        value = jnp.take_along_axis(a, place, dim)
        return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))

    return reduce


def vector_norm(a, order=2.0, dims=None, keepdim=False, *, dtype=None):
    """The derivative at zero is zero."""
    if order == float("inf"):
        return jnp.max(jnp.abs(a), axes(dims), keepdims=keepdim)
    powers = total(jnp.abs(a) ** (2 if order == 2 else order), dims, keepdim, dtype=dtype)
    inside = jnp.where(powers > 0, powers, 1)
    return jnp.where(powers > 0, jnp.sqrt(inside) if order == 2 else inside ** (1 / order), 0)


def addmm(c, a, b, *, beta=1, alpha=1):
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product + (c if beta == 1 else beta * c)


OPERATIONS = {
    "sum.default": total,
    "sum.dim_IntList": total,
    "mean.default": mean,
    "mean.dim": mean,
    "var.correction": var,
    "amax.default": over(jnp.max),
    "amin.default": over(jnp.min),
    "max.default": jnp.max,
    "min.default": jnp.min,
    "max.dim": first(jnp.argmax),
    "min.dim": first(jnp.argmin),
    "argmax.default": over(jnp.argmax),
    "argmin.default": over(jnp.argmin),
    "any.default": over(jnp.any),
    "any.dim": over(jnp.any),
    "any.dims": over(jnp.any),
    "prod.default": jnp.prod,
    "prod.dim_int": over(jnp.prod),
    "cumsum.default": lambda a, dim, *, dtype=None: jnp.cumsum(a, dim, dtype=number_type(dtype)),
    "linalg_vector_norm.default": vector_norm,
    "mm.default": jnp.matmul,
    "bmm.default": jnp.matmul,
    "addmm.default": addmm,
}
