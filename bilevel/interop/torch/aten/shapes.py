"""Operations that move entries about, and those that make arrays."""

import jax
import jax.numpy as jnp


def number_type(dtype):
    """The type of this name, or the one that JAX has in its place without x64."""
    return None if dtype is None else jax.dtypes.canonicalize_dtype(dtype)


def along(dim, index):
    """An index of one axis from the front, or one from the back."""
    return (
        (slice(None),) * dim + (index,) if dim >= 0 else (..., index) + (slice(None),) * (-dim - 1)
    )


def expand(a, sizes):
    new = len(sizes) - jnp.ndim(a)
    kept = (1,) * new + jnp.shape(a)
    return jnp.broadcast_to(a, [k if s == -1 else s for s, k in zip(sizes, kept, strict=True)])


def squeeze(a, dims):
    """Drop the axes of length 1 among those named."""
    return jnp.squeeze(a, tuple(d for d in dims if a.shape[d] == 1))


def slice_axis(a, dim=0, start=None, end=None, step=1):
    return a[along(dim, slice(start, end, step))]


def split_with_sizes(a, sizes, dim=0):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(
        a[along(dim, slice(end - size, end))] for end, size in zip(ends, sizes, strict=True)
    )


def pad(a, widths, value=0.0):
    """`widths` go from the last axis to the first; negative ones cut."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (a.ndim - len(pairs)) + pairs
    value = jnp.asarray(value, a.dtype)
    return jax.lax.pad(a, value, [(low, high, 0) for low, high in pairs])


def index(a, indices):
    return a[tuple(slice(None) if one is None else one for one in indices)]


def index_put(a, indices, values, accumulate=False):
    place = a.at[tuple(slice(None) if one is None else one for one in indices)]
    values = jnp.asarray(values, a.dtype)
    return place.add(values) if accumulate else place.set(values)


def full(size, value, *, dtype=None):
    return jnp.full(size, value, number_type(dtype))


def full_like(a, value, *, dtype=None):
    return jnp.full_like(a, value, dtype=number_type(dtype))


def arange(start, end, step=1, *, dtype=None):
    return jnp.arange(start, end, step, dtype=number_type(dtype))


def to_copy(a, *, dtype=None):
    return a if dtype is None else jnp.asarray(a).astype(number_type(dtype))


def same(a, *_, **__):
    return a


OPERATIONS = {
    "view.default": jnp.reshape,
    "reshape.default": jnp.reshape,
    "permute.default": jnp.transpose,
    "expand.default": expand,
    "unsqueeze.default": jnp.expand_dims,
    "squeeze.dims": squeeze,
    "slice.Tensor": slice_axis,
    "select.int": lambda a, dim, i: a[along(dim, i)],
    "split_with_sizes.default": split_with_sizes,
    "cat.default": lambda arrays, dim=0: jnp.concatenate(arrays, dim),
    "flip.default": lambda a, dims: jnp.flip(a, dims),
    "repeat.default": jnp.tile,
    "diagonal.default": lambda a, offset=0, dim1=0, dim2=1: jnp.diagonal(a, offset, dim1, dim2),
    "constant_pad_nd.default": pad,
    "index.Tensor": index,
    "index_put.default": index_put,
    "index_select.default": lambda a, dim, i: jnp.take(a, i, dim),
    "gather.default": lambda a, dim, i: jnp.take_along_axis(a, i, dim),
    "full.default": full,
    "full_like.default": full_like,
    "empty.memory_format": lambda size, *, dtype=None: full(size, 0, dtype=dtype),
    "scalar_tensor.default": same,  # a number adopts the type of what it meets
    "arange.start_step": arange,
    "_to_copy.default": to_copy,
    "clone.default": same,
    "alias.default": same,
    "sym_size.int": lambda a, dim: a.shape[dim],
}
