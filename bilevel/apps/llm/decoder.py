"""A decoder as a pure function of a dict of arrays: any derivative, any mesh, any layout.

Parameters, with kernels `(in, out)`:

    {"embed": (vocab, width),
     "layers": [{"attention_norm": {"scale": ...}, "query": {"kernel": ...}, "key": ...,
                 "value": ..., "output": ..., "mlp_norm": ..., "gate": ..., "up": ...,
                 "down": ...}, ...],
     "norm": {"scale": (width,)},
     "head": {"kernel": (width, vocab)}}                  # absent when tied

"layers" is a list, run one after the other, or a single dict whose leaves have a leading axis of
layers, run by a scan. The tree decides; `stack` and `unstack` turn one into the other.

Rows of tokens may be padded and packed: `segments` is 0 at padding, wherever it is, and otherwise
the number of the sequence a token belongs to, which never decreases along a row. A mask of true
and false is the case of one sequence a row. Padding changes nothing for other tokens, and its id is
not looked at.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from bilevel import sharding
from bilevel.apps.llm import attention as attentions
from bilevel.apps.llm.attention import accurate
from bilevel.apps.llm.config import Activation, Config, Layers, LinearScaling, Llama3Scaling

Params = dict[str, Any]
Tokens = Int[Array, "batch time"]
Segments = Int[Array, "batch time"] | Bool[Array, "batch time"]

EVERYWHERE = 2**30  # a window longer than any row


class Remat(enum.Enum):
    """What a layer keeps for its derivative; the rest is computed again."""

    NONE = "everything"
    PRODUCTS = "results of matrix products with weights"
    LAYERS = "its input alone"


@dataclass(frozen=True)
class How:
    """How a decoder is computed; nothing here changes what it computes, rounding aside.

    Args:
        attention: a function of `bilevel.apps.llm.attention`.
        dtype: of activations; that of the embedding when absent.
        pin: where activations `(batch, time, width)` lie, on a mesh; those whose rows do not divide
            over it are left to the compiler.
    """

    attention: Callable = attentions.plain
    remat: Remat = Remat.NONE
    dtype: Any = None
    pin: NamedSharding | None = None


# --- what others call ----------------------------------------------------------------------


def hidden(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    since: int = 0,
    how: How = How(),
) -> Float[Array, "batch time-since width"]:
    """The residual stream after the last norm: what heads read. Padding holds finite noise.

    Args:
        since: the first place whose state is wanted. Of those before it the last layer computes
            keys and values alone, where layers are a list.
    """
    if segments is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return hidden_at(config, params, tokens, positions, None, since=since, how=how)
    segments = segments.astype(jnp.int32)
    tokens, positions = jnp.where(segments > 0, tokens, 0), positions_of(segments)
    return hidden_at(config, params, tokens, positions, seen(segments), since=since, how=how)


def hidden_at(
    config: Config,
    params: Params,
    tokens: Tokens,
    positions: Int[Array, "batch time"],
    mask: Bool[Array, "batch time time"] | None,
    *,
    since: int = 0,
    how: How = How(),
) -> Float[Array, "batch time-since width"]:
    """`hidden`, with who sees whom told, for rows that are more than sequences in succession.

    Args:
        positions: of each token in its sequence.
        mask: true where a query (the first axis of time) sees a key; None for causal attention.
    """
    x, time = embed(config, params, tokens, how=how), tokens.shape[1]
    rotation = rotations(config, positions, x)

    def layer(p, x, window, since=0):
        def attend(q, k, v):
            if not since and not isinstance(window, Array):
                return how.attention(q, k, v, *within(mask, positions, window)), None
            whole = attentions.causal(time) if mask is None else mask
            back = near(positions[:, since:], positions, EVERYWHERE if window is None else window)
            return how.attention(q, k, v, whole[:, since:] & back, None), None

        return block(config, p, x, rotation, attend, since=since, how=how)

    x, _ = through(config, params["layers"], x, layer, partial(layer, since=since), how=how)
    return norm(config, params["norm"], x[:, since - time :])


def logits(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    how: How = How(),
) -> Float[Array, "batch time vocab"]:
    """Scores of the next token at every position; float32 or better."""
    return read_out(params, hidden(config, params, tokens, segments, how=how))


def token_logprobs(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    how: How = How(),
    chunk: int | None = 256,
) -> Float[Array, "batch time"]:
    """log π(token | those before it), in the place of the token.

    Zero at padding and at the first token of a sequence, which nothing predicts. So
    `(token_logprobs(...) * response_mask).sum(-1)` is the log-probability of a response.

    Args:
        chunk: positions whose scores are held at once, so that no array of batch × time ×
            vocabulary is; None takes all.
    """
    x = hidden(config, params, tokens, segments, how=how)
    x, known = predecessors(x, segments)

    def pick(scores, tokens):
        return chosen(scores, tokens) - jax.nn.logsumexp(scores, axis=-1)

    found = over_vocabulary(params, x, pick, jnp.where(known, tokens, 0), chunk=chunk)
    return jnp.where(known, found, 0)


def over_vocabulary(
    params: Params,
    x: Float[Array, "batch time width"],
    fn: Callable[..., PyTree[Float[Array, "batch chunk ..."]]],
    *others: Array,
    chunk: int | None = 256,
) -> PyTree[Float[Array, "batch time ..."]]:
    """`fn(scores, *others)` at every position, with the scores of a chunk of positions at a time.

    For what is small for each token but reads the whole vocabulary: log-probabilities, entropies,
    divergences. With several chunks the scores are computed again for derivatives.

    Args:
        x: from `hidden`.
        others: arrays `(batch, time, ...)` handed to `fn` beside the scores.
    """
    batch, time = x.shape[:2]
    if chunk is None or time <= chunk:  # to keep the scores takes no more than to make them again
        return fn(read_out(params, x), *others)
    apply = jax.checkpoint(lambda x, *others: fn(read_out(params, x), *others))
    count = -(-time // chunk)

    def cut(leaf):  # -> (count, batch, chunk, ...)
        width = [(0, 0), (0, count * chunk - time)] + [(0, 0)] * (leaf.ndim - 2)
        parts = jnp.pad(leaf, width).reshape(batch, count, chunk, *leaf.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    def join(leaf):
        whole = jnp.moveaxis(leaf, 0, 1)
        return whole.reshape(batch, count * chunk, *leaf.shape[3:])[:, :time]

    found = jax.lax.map(lambda parts: apply(*parts), (cut(x), *map(cut, others)))
    return jax.tree.map(join, found)


def init(
    config: Config,
    key: Array,
    *,
    layers: Layers = Layers.LIST,
    dtype: DTypeLike = jnp.float32,
    deviation: float = 0.02,
) -> Params:
    """Random parameters: normal kernels, zero biases, scales of one."""
    shapes, leaf_of = jax.tree.flatten(shapes_of(config, layers), is_leaf=_is_shape)
    lasts = [path[-1] for path, _ in paths(shapes_of(config, layers))]
    keys, leaves = jax.random.split(key, len(shapes)), []
    for last, shape, one in zip(lasts, shapes, keys, strict=True):
        if last == "bias":
            leaves.append(jnp.zeros(shape, dtype))
        elif last == "scale":
            leaves.append(jnp.ones(shape, dtype))
        else:
            noise = jax.random.normal(one, shape, jnp.float32) * jnp.float32(deviation)
            leaves.append(noise.astype(dtype))
    return jax.tree.unflatten(leaf_of, leaves)


def abstract(
    config: Config, *, layers: Layers = Layers.LIST, dtype: DTypeLike = jnp.float32
) -> PyTree[jax.ShapeDtypeStruct]:
    """The parameter tree with shapes for arrays: to place, lower and compile without memory."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes_of(config, layers),
        is_leaf=_is_shape,
    )


def size(config: Config) -> int:
    """How many parameters there are."""
    return sum(int(np.prod(shape)) for _, shape in paths(shapes_of(config)))


def layout_of(params: Params) -> Layers:
    return Layers.SCAN if isinstance(params["layers"], dict) else Layers.LIST


def stack(params: Params) -> Params:
    """The same parameters for a scan over layers."""
    if layout_of(params) is Layers.SCAN:
        return params
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])
    return {**params, "layers": stacked}


def unstack(params: Params) -> Params:
    """The same parameters as a list of layers."""
    if layout_of(params) is Layers.LIST:
        return params
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(count)]
    return {**params, "layers": layers}


# --- shapes --------------------------------------------------------------------------------


def shapes_of(config: Config, layers: Layers = Layers.LIST) -> dict[str, Any]:
    """The parameter tree with a tuple for each array."""
    c, queries, values = config, config.heads * config.head_dim, config.kv_heads * config.head_dim

    def normed(n):
        return {"scale": (n,), "bias": (n,)} if c.layer_norm else {"scale": (n,)}

    def linear(into, out, bias):
        return {"kernel": (into, out), "bias": (out,)} if bias else {"kernel": (into, out)}

    layer = {
        "attention_norm": normed(c.width),
        "query": linear(c.width, queries, c.qkv_bias),
        "key": linear(c.width, values, c.qkv_bias),
        "value": linear(c.width, values, c.qkv_bias),
        "output": linear(queries, c.width, c.output_bias),
        "mlp_norm": normed(c.width),
        "up": linear(c.width, c.inner, c.mlp_bias),
        "down": linear(c.inner, c.width, c.mlp_bias),
    }
    if c.gated:
        layer["gate"] = linear(c.width, c.inner, c.mlp_bias)
    if c.qk_norm:
        layer |= {"query_norm": {"scale": (c.head_dim,)}, "key_norm": {"scale": (c.head_dim,)}}
    if layers is Layers.SCAN:
        stacked = jax.tree.map(lambda shape: (c.layers, *shape), layer, is_leaf=_is_shape)
    else:
        stacked = [layer] * c.layers
    tree = {"embed": (c.vocab_size, c.width), "layers": stacked, "norm": normed(c.width)}
    return tree if c.tied else tree | {"head": linear(c.width, c.vocab_size, False)}


def _is_shape(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


def paths(tree) -> list[tuple[tuple[str | int, ...], tuple[int, ...]]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_shape)
    return [(tuple(name_of(key) for key in path), shape) for path, shape in flat]


def name_of(key) -> str | int:
    return key.key if isinstance(key, jax.tree_util.DictKey) else key.idx


# --- pieces, which sampling uses too -------------------------------------------------------


def embed(config: Config, params: Params, tokens: Tokens, *, how: How) -> Array:
    table = params["embed"]
    return _pinned(table.astype(how.dtype or table.dtype)[tokens], how)


def read_out(params: Params, x: Float[Array, "batch time width"]) -> Array:
    """Scores of every token of the vocabulary."""
    if "head" in params:
        kernel, into = params["head"]["kernel"].astype(x.dtype), "wv"
    else:
        kernel, into = params["embed"].astype(x.dtype), "vw"
    scores = jnp.einsum(f"nw,{into}->nv", _rows(x), kernel, preferred_element_type=accurate(x))
    return scores.reshape(*x.shape[:-1], -1)


def through(
    config: Config, layers, x: Array, layer: Callable, last: Callable | None = None, *, how: How
) -> tuple[Array, Any]:
    """All layers: `layer(p, x, window) -> (x, kept)`; what was kept, a list or stacked.

    Args:
        last: takes the place of `layer` for the last one of a list.
    """
    if not isinstance(layers, dict):
        kept, every = [], [layer] * (len(layers) - 1) + [last or layer]
        for one, p, window in zip(every, layers, config.windows, strict=True):
            x, own = _remat(lambda p, x, one=one, w=window: one(p, x, w), how.remat)(p, x)
            kept.append(own)
        return x, kept
    if len(set(config.windows)) == 1:
        window = config.windows[0]
        step = _remat(lambda x, p: layer(p, x, window), how.remat)
        return jax.lax.scan(step, x, layers)
    windows = jnp.asarray([w or EVERYWHERE for w in config.windows], jnp.int32)
    step = _remat(lambda x, one: layer(one[0], x, one[1]), how.remat)
    return jax.lax.scan(step, x, (layers, windows))


def block(
    config: Config, p: Params, x: Array, rotation, attend: Callable, *, since: int = 0, how: How
) -> tuple[Array, Any]:
    """One layer; `attend(q, k, v)` returns the mixed values and what is to be kept of them.

    Args:
        since: the first place that is asked for; those before it only answer.
    """
    a = norm(config, p["attention_norm"], x)
    x = x[:, since:]
    q = _heads(project(p["query"], a[:, since:]), config.head_dim)
    k = _heads(project(p["key"], a), config.head_dim)
    v = _heads(project(p["value"], a), config.head_dim)
    if config.qk_norm:
        q, k = (
            _rms(q, p["query_norm"]["scale"], config.norm_eps),
            _rms(k, p["key_norm"]["scale"], config.norm_eps),
        )
    asked = jax.tree.map(lambda turn: turn[:, since:], rotation)
    mixed, kept = attend(rotate(q, asked), rotate(k, rotation), v)
    a = project(p["output"], mixed.reshape(*mixed.shape[:2], -1))
    if config.parallel:
        x = x + a + mlp(config, p, norm(config, p["mlp_norm"], x))
    else:
        x = x + a
        x = x + mlp(config, p, norm(config, p["mlp_norm"], x))
    return _pinned(x, how), kept


def _pinned(x: Array, how: How) -> Array:
    if how.pin is None or x.shape[0] % sharding.row_parts((how.pin,)):
        return x
    return jax.lax.with_sharding_constraint(x, how.pin)


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
    """`x W + b`, and `+ (x A) B` where an adapter is attached (`lora.attach`)."""
    rows = _rows(x)
    y = rows @ p["kernel"].astype(x.dtype)
    if "a" in p:
        y = y + (rows @ p["a"].astype(x.dtype)) @ p["b"].astype(x.dtype)
    y = y + _row(p["bias"], y) if "bias" in p else y
    return y.reshape(*x.shape[:-1], -1)


def _rows(x: Array) -> Array:
    """Batch and time as one axis: a kernel's gradient is then a plain product, which XLA computes
    up to a fifth faster on a CPU than a sum over two."""
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


# --- positions -----------------------------------------------------------------------------


def frequencies(config: Config) -> np.ndarray:
    """Radians a position, for each rotated pair of a head."""
    rope, dim = config.rope, config.rotary_dim
    per_token = rope.theta ** (-np.arange(0, dim, 2) / dim)
    match rope.scaling:
        case None:
            return per_token
        case LinearScaling(factor):
            return per_token / factor
        case Llama3Scaling(factor, low, high, length):
            turns = length * per_token / (2 * np.pi)  # in the context of the first training
            kept = np.clip((turns - low) / (high - low), 0, 1)
            return per_token * (kept + (1 - kept) / factor)


def rotations(
    config: Config, positions: Int[Array, "batch time"], like: Array
) -> tuple[Array, Array]:
    """Cosine and sine `(batch, time, 1, rotary_dim / 2)`, of the type of another array."""
    turn = jnp.asarray(frequencies(config), accurate(like))[None, None]
    angles = (positions.astype(turn.dtype)[..., None] * turn)[:, :, None]
    return jnp.cos(angles).astype(like.dtype), jnp.sin(angles).astype(like.dtype)


def rotate(x: Float[Array, "batch time heads dim"], rotation: tuple[Array, Array]) -> Array:
    """Entries i and i + rotary_dim / 2 of a head turn together; the rest of the head stays."""
    cos, sin = rotation
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def positions_of(segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """How many tokens of the same sequence come before; at padding, that of the last token."""
    valid, last = segments > 0, jax.lax.cummax(segments, axis=1)
    order = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(segments > before, order, 0), axis=1)
    return jnp.maximum(order - start, 0)


def seen(segments: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Tokens see those of their sequence up to themselves."""
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
    return same & attentions.causal(segments.shape[1])


def near(queries: Array, keys: Array, window: int | Array) -> Bool[Array, "batch queries keys"]:
    """Keys fewer than `window` positions before a query."""
    return queries[:, :, None] - keys[:, None] < window


def within(mask, positions, window: int | None):
    """The mask and window that attention is to be given."""
    if mask is None or window is None:
        return mask, window
    return mask & near(positions, positions, window), None


def predecessors(
    x: Float[Array, "batch time width"], segments: Segments | None
) -> tuple[Array, Bool[Array, "batch time"]]:
    """At every token the state that predicts it, and whether there is one."""
    if segments is None:
        known = jnp.broadcast_to((jnp.arange(x.shape[1]) > 0)[None], x.shape[:2])
        return jnp.roll(x, 1, axis=1), known
    segments = segments.astype(jnp.int32)
    index = jnp.broadcast_to(jnp.arange(x.shape[1])[None], segments.shape)
    last = jax.lax.cummax(jnp.where(segments > 0, index, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    safe = jnp.maximum(before, 0)
    same = jnp.take_along_axis(segments, safe, axis=1) == segments
    known = (before >= 0) & (segments > 0) & same
    return jnp.take_along_axis(x, safe[..., None], axis=1), known


def chosen(scores: Float[Array, "... vocab"], tokens: Int[Array, "..."]) -> Float[Array, "..."]:
    """The score of one token at each position; a sum, so that a split vocabulary stays split."""
    ids = jax.lax.broadcasted_iota(tokens.dtype, scores.shape, scores.ndim - 1)
    return jnp.where(ids == tokens[..., None], scores, 0).sum(-1)
