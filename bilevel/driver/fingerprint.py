"""What must agree before a saved state is taken up again."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel.data import Feed
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Batch, Problem
from bilevel.schedules import shown

# What differs, by the name of the part that shows it; the first one that does is told.
WORDS = {
    "method": "another method",
    "state": "another state, whose arrays have other shapes or dtypes",
    "start": "another start: x0 and y0, or the given state, differ",
    "key": "another key",
    "data": "another data: the numbers, the batch size or the order differ",
    "problem": "another problem: the numbers that it carries differ",
    "upper": "another code of the upper loss",
    "lower": "another code of the lower loss",
    "code": "another code of a step: a set, an update or a setting that is fixed when compiled",
    "keep": "another keep=",
}
CODE = ("upper", "lower", "code")  # compared only where the version of JAX is the same


def fingerprint(
    problem: Problem,
    method: AbstractMethod,
    state: State,
    feed: Feed,
    first: Batch,
    *,
    content: Any,
    key: Any,
    start: Any,
) -> dict[str, str]:
    """A few letters for every part that must agree.

    The code of the losses and of a step (sets, updates, samplers), the numbers a problem carries,
    the data, the key and the starting point; numbers of the method, such as step sizes, may change,
    and so may the devices.

    Args:
        feed, first: samples of a step and a batch, for abstract evaluation.
        content: what the data are made of.
        start: where the run began.
    """
    shapes = jax.tree_util.tree_leaves_with_path(state)
    told = [f"{jax.tree_util.keystr(p)}:{leaf.dtype}{leaf.shape}" for p, leaf in shapes]

    def step(problem, method, state, feed):
        return method.step(problem, state, feed.batch(state.k))

    losses = {
        level: _code(getattr(problem, level), state.x, state.y, getattr(first, level))
        for level in ("upper", "lower")
    }
    return {
        "jax": jax.__version__,
        "method": type(method).__name__,
        "state": digest_of(*told),
        "problem": digest(problem),
        **losses,
        "code": _code(step, problem, method, state, feed),
        "data": digest_of(str(feed.draws), *map(_told, jax.tree.leaves(content))),
        "key": digest_of(_told(key)),
        "start": digest(start),
    }


def difference(saved: dict[str, str], ours: dict[str, str]) -> str | None:
    """The first part that differs, in words."""
    same_jax = saved.get("jax") == ours["jax"]
    for name, words in WORDS.items():
        if saved.get(name) != ours.get(name) and (same_jax or name not in CODE):
            shown_too = f": saved {saved.get(name)}, now {ours.get(name)}"
            return words + (shown_too if name in ("method", "keep") else "")
    return None


def settings(method: AbstractMethod) -> dict[str, str]:
    """The numbers of a method by name, for a note where they changed."""
    leaves = jax.tree_util.tree_leaves_with_path(method)
    return {jax.tree_util.keystr(path).removeprefix("."): shown(leaf) for path, leaf in leaves}


def changed(saved: dict[str, str], ours: dict[str, str]) -> str | None:
    """Which numbers of a method are not those of the checkpoint."""
    told = [
        f"{name} from {saved[name]} to {value}"
        for name, value in ours.items()
        if name in saved and saved[name] != value
    ]
    return f"settings changed since the checkpoint: {', '.join(told)}" if told else None


def _code(fn: Any, *args: Any) -> str:
    """Letters for what a function computes."""
    traced = jax.make_jaxpr(fn)(*jax.tree.map(_anywhere, args))
    code = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))
    return digest_of(code, *map(_told, traced.consts))


def digest(tree: Any) -> str:
    """A few letters that differ where the numbers of a tree do; the same on any devices."""
    return digest_of(*map(_told, jax.tree.leaves(tree)))


def digest_of(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _told(leaf: Any) -> str:
    """An array's dtype, shape and content, the last as a checksum made where the array lies."""
    leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return f"{leaf.dtype}{leaf.shape}{np.asarray(_checksum(leaf))}"


def _anywhere(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array's shape and dtype without the devices it lies on."""
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, weak_type=weak)


@jax.jit
def _checksum(leaf: Array) -> Array:
    """Two sums modulo 2^32 of mixed bits and positions: in any order, so on any devices."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    width = min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    position = jnp.zeros_like(words)
    for axis, length in enumerate(words.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * jnp.uint32(length) + along

    def mixed(bits, seed):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
        return bits ^ (bits >> 16) ^ jnp.uint32(seed)

    sums = [mixed(mixed(position, seed) + words, seed).sum(dtype=jnp.uint32) for seed in (1, 2)]
    return jnp.stack(sums)


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
