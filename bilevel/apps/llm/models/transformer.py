"""The parts of a decoder: embedding, layers, output head."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from bilevel import sharding
from bilevel.apps.llm.models import attention as attentions
from bilevel.apps.llm.models.attention import accurate
from bilevel.apps.llm.models.config import Activation, Config
from bilevel.apps.llm.models.masks import EVERYWHERE
from bilevel.apps.llm.models.parameters import Params
from bilevel.apps.llm.models.rope import rotate

Tokens = Int[Array, "batch time"]


class Remat(enum.Enum):
    """What a layer stores for its derivative; the rest is recomputed."""

    NONE = "everything"
    PRODUCTS = "results of matrix products with weights"
    LAYERS = "its input alone"


@dataclass(frozen=True)
class ComputeOptions:
    """Options of the computation, which change the result only by rounding.

    Args:
        attention: a function of `bilevel.apps.llm.models.attention`.
        dtype: dtype of activations; that of the embedding if `None`.
        parts: rows are worked through in so many parts, one after another, and a derivative
            computes each part again: gradient accumulation, in the memory of one part.
        pin: sharding of the activations `(batch, time, width)`; if the rows cannot be split evenly
            over the mesh, the compiler chooses.
    """

    attention: Callable = attentions.plain
    remat: Remat = Remat.NONE
    dtype: Any = None
    parts: int = 1
    pin: NamedSharding | None = None


def in_parts(fn: Callable, parts: int, rows: Any) -> Any:
    """`fn(rows)`, which maps every row by itself, for a part of the rows at a time.

    Part i holds the rows i, i + parts, …, so that rows that are split over devices stay there.
    Where the number of rows is no multiple of the parts, some rows are taken twice.
    """
    n = len(jax.tree.leaves(rows)[0])
    parts = min(parts, n)
    if parts < 2:
        return fn(rows)
    size = -(-n // parts)
    if n % parts:
        again = np.arange(size * parts) % n
        rows = jax.tree.map(lambda leaf: leaf[again], rows)
    split = jax.tree.map(
        lambda leaf: leaf.reshape(size, parts, *leaf.shape[1:]).swapaxes(0, 1), rows
    )
    found = jax.lax.map(jax.checkpoint(fn), split)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])[:n], found)


def embed(config: Config, params: Params, tokens: Tokens, *, compute: ComputeOptions) -> Array:
    table = params["embed"]
    return _pinned(table.astype(compute.dtype or table.dtype)[tokens], compute)


def read_out(params: Params, x: Float[Array, "batch time width"]) -> Array:
    """Logits of every token of the vocabulary."""
    if "head" in params:
        kernel, into = params["head"]["kernel"].astype(x.dtype), "wv"
    else:
        kernel, into = params["embed"].astype(x.dtype), "vw"
    scores = jnp.einsum(f"nw,{into}->nv", _rows(x), kernel, preferred_element_type=accurate(x))
    return scores.reshape(*x.shape[:-1], -1)


def through(
    config: Config,
    layers,
    x: Array,
    layer: Callable,
    last: Callable | None = None,
    *,
    compute: ComputeOptions,
) -> tuple[Array, Any]:
    """Apply all layers, `layer(p, x, window) -> (x, kept)`; returns x and all `kept` values.

    Args:
        last: used instead of `layer` for the last layer of a list.
    """
    if not isinstance(layers, dict):
        kept, every = [], [layer] * (len(layers) - 1) + [last or layer]
        for one, p, window in zip(every, layers, config.windows, strict=True):
            x, own = _remat(lambda p, x, one=one, w=window: one(p, x, w), compute.remat)(p, x)
            kept.append(own)
        return x, kept
    if len(set(config.windows)) == 1:
        window = config.windows[0]
        step = _remat(lambda x, p: layer(p, x, window), compute.remat)
        return jax.lax.scan(step, x, layers)
    windows = jnp.asarray([w or EVERYWHERE for w in config.windows], jnp.int32)
    step = _remat(lambda x, one: layer(one[0], x, one[1]), compute.remat)
    return jax.lax.scan(step, x, (layers, windows))


def block(
    config: Config,
    p: Params,
    x: Array,
    rotation,
    attend: Callable,
    *,
    query_start: int = 0,
    compute: ComputeOptions,
) -> tuple[Array, Any]:
    """One layer; `attend(q, k, v)` returns the attention output and what to keep (a cache).

    Args:
        query_start: the first query position; earlier positions are only keys and values.
    """
    a = norm(config, p["attention_norm"], x)
    x = x[:, query_start:]
    q = _heads(project(p["query"], a[:, query_start:]), config.head_dim)
    k = _heads(project(p["key"], a), config.head_dim)
    v = _heads(project(p["value"], a), config.head_dim)
    if config.qk_norm:
        q, k = (
            _rms(q, p["query_norm"]["scale"], config.norm_eps),
            _rms(k, p["key_norm"]["scale"], config.norm_eps),
        )
    query_rotation = jax.tree.map(lambda inv_freq: inv_freq[:, query_start:], rotation)
    mixed, kept = attend(rotate(q, query_rotation), rotate(k, rotation), v)
    a = project(p["output"], mixed.reshape(*mixed.shape[:2], -1))
    if config.parallel:
        x = x + a + mlp(config, p, norm(config, p["mlp_norm"], x))
    else:
        x = x + a
        x = x + mlp(config, p, norm(config, p["mlp_norm"], x))
    return _pinned(x, compute), kept


def _pinned(x: Array, compute: ComputeOptions) -> Array:
    if compute.pin is None or x.shape[0] % sharding.row_parts((compute.pin,)):
        return x
    return jax.lax.with_sharding_constraint(x, compute.pin)


def mlp(config: Config, p: Params, x: Array) -> Array:
    act = ACTIVATIONS[config.activation]
    if config.gated:
        return project(p["down"], act(project(p["gate"], x)) * project(p["up"], x))
    return project(p["down"], act(project(p["up"], x)))


ACTIVATIONS = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU: lambda x: jax.nn.gelu(x, approximate=False),
    Activation.GELU_TANH: lambda x: jax.nn.gelu(x, approximate=True),
    Activation.RELU: jax.nn.relu,
}


def project(p: Params, x: Array) -> Array:
    """`x W + b`, plus `(x A) B` if an adapter is attached (`lora.attach`)."""
    rows = _rows(x)
    y = rows @ p["kernel"].astype(x.dtype)
    if "a" in p:
        y = y + (rows @ p["a"].astype(x.dtype)) @ p["b"].astype(x.dtype)
    y = y + _row(p["bias"], y) if "bias" in p else y
    return y.reshape(*x.shape[:-1], -1)


def _rows(x: Array) -> Array:
    """Merge batch and time into one axis. The gradient of a kernel is then a plain matrix product,
    which XLA computes up to a fifth faster on a CPU than a contraction over two axes."""
    return x.reshape(-1, x.shape[-1])


def norm(config: Config, p: Params, x: Array) -> Array:
    if not config.layer_norm:
        return _rms(x, p["scale"], config.norm_eps)
    exact = x.astype(accurate(x))
    exact = exact - exact.mean(-1, keepdims=True)
    exact = exact * jax.lax.rsqrt((exact**2).mean(-1, keepdims=True) + config.norm_eps)
    return (exact * _row(p["scale"], exact) + _row(p["bias"], exact)).astype(x.dtype)


def _rms(x: Array, scale: Array, eps: float) -> Array:
    exact = x.astype(accurate(x))
    exact = exact * jax.lax.rsqrt((exact**2).mean(-1, keepdims=True) + eps)
    return exact.astype(x.dtype) * _row(scale, x)


def _row(vector: Array, like: Array) -> Array:
    """A vector that multiplies the last axis of another array."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + vector.shape)


def _heads(x: Array, head_dim: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, head_dim)


def _remat(fn: Callable, remat: Remat) -> Callable:
    if remat is Remat.NONE:
        return fn
    keep = jax.checkpoint_policies
    products = remat is Remat.PRODUCTS
    policy = keep.dots_with_no_batch_dims_saveable if products else keep.nothing_saveable
    return jax.checkpoint(fn, policy=policy)
