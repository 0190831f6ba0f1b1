"""A decoder as a pure function of a dict of arrays, with all derivatives, on any mesh.

Parameters, with kernels `(in, out)`:

    {"embed": (vocab, width),
     "layers": [{"attention_norm": {"scale": ...}, "query": {"kernel": ...}, "key": ...,
                 "value": ..., "output": ..., "mlp_norm": ..., "gate": ..., "up": ...,
                 "down": ...}, ...],
     "norm": {"scale": (width,)},
     "head": {"kernel": (width, vocab)}}                  # absent when tied

"layers" is a list, run in a Python loop, or a single dict whose leaves have a leading axis of
layers, run by a scan. The parameter tree decides; `stack` and `unstack` convert between the two.

Rows of tokens may be padded and packed. `segments` is 0 at padding and otherwise the number of the
sequence that the token belongs to, nondecreasing along a row. A Boolean mask is the case of one
sequence per row. Padding does not affect other tokens, and its token id is ignored.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel.apps.llm.models import attention as attentions
from bilevel.apps.llm.models import parameters
from bilevel.apps.llm.models.config import Config
from bilevel.apps.llm.models.masks import (
    EVERYWHERE,
    Segments,
    attention_mask,
    segment_mask,
    window_mask,
)
from bilevel.apps.llm.models.parameters import Params
from bilevel.apps.llm.models.rope import positions_of, rotations
from bilevel.apps.llm.models.transformer import (
    ComputeOptions,
    Tokens,
    block,
    embed,
    norm,
    read_out,
    through,
)


def hidden(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    query_start: int = 0,
    compute: ComputeOptions = ComputeOptions(),
) -> Float[Array, "batch time-query_start width"]:
    """The residual stream after the last norm. Values at padding are finite but meaningless.

    Args:
        query_start: the first position whose state is returned. For earlier positions the last
            layer computes only keys and values, if the layers are a list.
    """
    if segments is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return hidden_at(
            config, params, tokens, positions, None, query_start=query_start, compute=compute
        )
    segments = segments.astype(jnp.int32)
    tokens, positions = jnp.where(segments > 0, tokens, 0), positions_of(segments)
    return hidden_at(
        config,
        params,
        tokens,
        positions,
        segment_mask(segments),
        query_start=query_start,
        compute=compute,
    )


def hidden_at(
    config: Config,
    params: Params,
    tokens: Tokens,
    positions: Int[Array, "batch time"],
    mask: Bool[Array, "batch time time"] | None,
    *,
    query_start: int = 0,
    compute: ComputeOptions = ComputeOptions(),
) -> Float[Array, "batch time-query_start width"]:
    """`hidden` with explicit positions and mask, for rows that are not packed sequences.

    Args:
        positions: position of each token in its sequence.
        mask: true where a query (first axis of time) attends to a key; None for causal attention.
    """
    x = _stream(config, params, tokens, positions, mask, query_start=query_start, compute=compute)
    return norm(config, params["norm"], x[:, query_start - tokens.shape[1] :])


def residual(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments,
    *,
    layers: int,
    compute: ComputeOptions = ComputeOptions(),
) -> Float[Array, "batch time width"]:
    """The residual stream after the first `layers` layers, without a norm; the others do not run.

    Values at padding are finite but meaningless.
    """
    config = replace(config, layers=layers, windows=config.windows[:layers])
    params = parameters.unstack(params)
    params = {**params, "layers": params["layers"][:layers]}
    segments = segments.astype(jnp.int32)
    tokens, positions = jnp.where(segments > 0, tokens, 0), positions_of(segments)
    return _stream(config, params, tokens, positions, segment_mask(segments), compute=compute)


def _stream(
    config: Config,
    params: Params,
    tokens: Tokens,
    positions: Int[Array, "batch time"],
    mask: Bool[Array, "batch time time"] | None,
    *,
    query_start: int = 0,
    compute: ComputeOptions,
) -> Array:
    """The residual stream after the last layer, whose queries start at `query_start`."""
    x, time = embed(config, params, tokens, compute=compute), tokens.shape[1]
    rotation = rotations(config, positions, x)

    def layer(p, x, window, query_start=0):
        def attend(q, k, v):
            if not query_start and not isinstance(window, Array):
                return compute.attention(q, k, v, *attention_mask(mask, positions, window)), None
            whole = attentions.causal(time) if mask is None else mask
            back = window_mask(
                positions[:, query_start:], positions, EVERYWHERE if window is None else window
            )
            return compute.attention(q, k, v, whole[:, query_start:] & back, None), None

        return block(config, p, x, rotation, attend, query_start=query_start, compute=compute)

    last = partial(layer, query_start=query_start)
    return through(config, params["layers"], x, layer, last, compute=compute)[0]


def logits(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    compute: ComputeOptions = ComputeOptions(),
) -> Float[Array, "batch time vocab"]:
    """Logits of the next token at every position; at least float32."""
    return read_out(params, hidden(config, params, tokens, segments, compute=compute))


def token_logprobs(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    compute: ComputeOptions = ComputeOptions(),
    chunk: int | None = 256,
) -> Float[Array, "batch time"]:
    """log π(token | earlier tokens), at the position of the token.

    Zero at padding and at the first token of a sequence, which has no prediction. So
    `(token_logprobs(...) * response_mask).sum(-1)` is the log-probability of a response.

    Args:
        chunk: number of positions whose logits are in memory at once, to avoid an array of batch ×
            time × vocabulary; None takes all.
    """
    x = hidden(config, params, tokens, segments, compute=compute)
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
    """`fn(scores, *others)` at every position, computed for one chunk of positions at a time.

    For results that are small per token but need the logits of the whole vocabulary:
    log-probabilities, entropies, divergences. With several chunks the logits are recomputed for
    derivatives.

    Args:
        x: hidden states, from `hidden`.
        others: arrays `(batch, time, ...)` passed to `fn` after the scores.
    """
    batch, time = x.shape[:2]
    if chunk is None or time <= chunk:  # one chunk: recomputing saves no memory
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


def predecessors(
    x: Float[Array, "batch time width"], segments: Segments | None
) -> tuple[Array, Bool[Array, "batch time"]]:
    """For every token the state that predicts it, and whether there is one."""
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
    """The score of one token per position, as a sum, so that a sharded vocabulary stays sharded."""
    ids = jax.lax.broadcasted_iota(tokens.dtype, scores.shape, scores.ndim - 1)
    return jnp.where(ids == tokens[..., None], scores, 0).sum(-1)
