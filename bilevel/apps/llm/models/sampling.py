"""Batched sampling of responses with a key-value cache, in one compiled loop."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from bilevel.apps.llm.models import attention, decoder, masks, parameters, rope, transformer
from bilevel.apps.llm.models.config import Config
from bilevel.apps.llm.models.masks import Segments
from bilevel.apps.llm.models.parameters import Params
from bilevel.apps.llm.models.transformer import ComputeOptions, Remat, Tokens


@dataclass(frozen=True)
class Drawing:
    """Sampling options.

    Args:
        new: maximal number of new tokens.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: top-k sampling: keep the k most likely tokens; None keeps all.
        top_p: nucleus sampling: keep the most likely tokens with this total probability; None keeps
            all.
        stop: token ids that end a response; they are part of it.

    Raises:
        ValueError: a number is outside its range.
    """

    new: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        if type(self.new) is not int or self.new < 1:
            raise ValueError(f"new is {self.new!r}; a whole number of at least 1 is needed.")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; 0 or more is needed.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; at least 1, or None, is needed.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; a share above 0 and up to 1 is needed.")


class Samples(NamedTuple):
    """Prompts with their responses; `time` is the prompt length plus `new`.

    The response starts after the last position of the prompt, so after the padding of a prompt
    that is padded on the right. The decoder ignores padding at any position.
    """

    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]  # not padding
    response: Bool[Array, "batch time"]  # drawn, the stop token included
    logprobs: Float[Array, "batch time"]  # of the model: token_logprobs, 0 outside the response
    drawn: Float[Array, "batch time"]  # under the distribution after temperature, top-k, top-p


class _State(NamedTuple):
    t: Int[Array, ""]  # tokens drawn
    key: PRNGKeyArray
    scores: Float[Array, "batch vocab"]  # of the next token
    done: Bool[Array, " batch"]
    samples: Samples
    cache: list[tuple[Array, Array]]  # keys and values of each layer, (batch, time, heads, dim)


def generate(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    key: PRNGKeyArray,
    drawing: Drawing = Drawing(),
    compute: ComputeOptions = ComputeOptions(),
) -> Samples:
    """Sample a response to every prompt.

    `logprobs` equals `decoder.token_logprobs(config, params, samples.tokens, samples.mask)` at any
    temperature. `drawn` is the same at temperature 1 without top-k and top-p. This is a pure
    function to be called under `jax.jit` (with `config`, `drawing` and `compute` static). The loop
    ends when all responses have ended.

    Args:
        segments: 0 at the padding of prompts, which may be anywhere; one sequence per row.
    """
    return generate_at(
        config,
        params,
        tokens,
        segments,
        key=key,
        drawing=drawing,
        compute=compute,
        temperature=drawing.temperature,
    )


def generate_at(
    config: Config,
    params: Params,
    tokens: Tokens,
    segments: Segments | None = None,
    *,
    key: PRNGKeyArray,
    temperature: ScalarLike,
    drawing: Drawing = Drawing(),
    compute: ComputeOptions = ComputeOptions(),
) -> Samples:
    """Like `generate`, with a temperature that may be traced; that of `drawing` is ignored."""
    prompt = tokens.shape[1]
    compute = dataclasses.replace(compute, remat=Remat.NONE)  # nothing is differentiated
    whole = segments is None
    valid = jnp.ones(tokens.shape, bool) if whole else segments.astype(jnp.int32) > 0
    layers = parameters.unstack(params)[
        "layers"
    ]  # once: a slice in the loop would copy it every time
    params = {**params, "layers": layers}
    scores, cache = _prefill(config, params, tokens, valid, drawing.new, compute)
    longer = ((0, 0), (0, drawing.new))
    nothing = jnp.zeros((tokens.shape[0], prompt + drawing.new), scores.dtype)
    start = _State(
        t=jnp.zeros((), jnp.int32),
        key=key,
        scores=scores,
        done=jnp.zeros(tokens.shape[0], bool),
        samples=Samples(
            tokens=jnp.pad(jnp.where(valid, tokens, 0).astype(jnp.int32), longer),
            mask=jnp.pad(valid, longer),
            response=jnp.zeros(nothing.shape, bool),
            logprobs=nothing,
            drawn=nothing,
        ),
        cache=cache,
    )

    def more(state: _State):
        return (state.t < drawing.new) & ~state.done.all()

    def step(state: _State) -> _State:
        key, now = jax.random.split(state.key)
        token, drawn = draw(now, state.scores, drawing, temperature)
        logprob = decoder.chosen(jax.nn.log_softmax(state.scores), token)
        live, at = ~state.done, prompt + state.t
        samples = Samples(
            *(
                jax.lax.dynamic_update_slice_in_dim(
                    old, jnp.where(live, new, jnp.zeros_like(new)).astype(old.dtype)[:, None], at, 1
                )
                for old, new in zip(state.samples, (token, live, live, logprob, drawn), strict=True)
            )
        )
        done = state.done | among(token, drawing.stop)
        scores, cache = _extend(config, params, samples, state.cache, at, compute)
        return _State(state.t + 1, key, scores, done, samples, cache)

    return jax.lax.while_loop(more, step, start).samples


def draw(
    key: PRNGKeyArray,
    scores: Float[Array, "batch vocab"],
    drawing: Drawing,
    temperature: ScalarLike,
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """A token for each row, and its log-probability under the sampling distribution.

    The log-probability is 0 at temperature 0.
    """
    temperature = jnp.asarray(temperature, scores.dtype)
    greedy = temperature == 0
    tempered = scores / jnp.where(greedy, 1, temperature)
    kept = jnp.ones(scores.shape, bool)
    if drawing.top_k is not None and drawing.top_k < scores.shape[-1]:
        kept &= tempered >= jax.lax.top_k(tempered, drawing.top_k)[0][:, -1:]
    if drawing.top_p is not None and drawing.top_p < 1:
        kept &= _nucleus(jnp.where(kept, tempered, attention.HIDDEN), drawing.top_p)
    tempered = jax.nn.log_softmax(jnp.where(kept, tempered, attention.HIDDEN))
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    token = jnp.argmax(tempered + jnp.where(greedy, 0, noise), axis=-1).astype(jnp.int32)
    return token, jnp.where(greedy, 0, decoder.chosen(tempered, token))


def _nucleus(scores: Float[Array, "batch vocab"], share: float) -> Bool[Array, "batch vocab"]:
    """The nucleus: the smallest set of most likely tokens with probability at least `share`."""
    ranked = -jnp.sort(-scores, axis=-1)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability  # of all more likely tokens
    last = jnp.sum(before < share, axis=-1, keepdims=True) - 1
    return scores >= jnp.take_along_axis(ranked, last, axis=-1)


def _prefill(config, params, tokens, valid, new: int, compute: ComputeOptions):
    """Logits after the prompt, and the key-value cache with room for the response."""
    segments = valid.astype(jnp.int32)
    positions, mask = rope.positions_of(segments), masks.segment_mask(segments)
    x = transformer.embed(config, params, jnp.where(valid, tokens, 0), compute=compute)
    rotation = rope.rotations(config, positions, x)

    def layer(p, x, window):
        def attend(q, k, v):
            mixed = compute.attention(q, k, v, *masks.attention_mask(mask, positions, window))
            room = [(0, 0), (0, new), (0, 0), (0, 0)]
            return mixed, (jnp.pad(k, room), jnp.pad(v, room))

        return transformer.block(config, p, x, rotation, attend, compute=compute)

    x, cache = transformer.through(config, params["layers"], x, layer, compute=compute)
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(valid, index, 0), axis=1)[:, None, None]
    x = jnp.take_along_axis(x, last, axis=1)
    return transformer.read_out(params, transformer.norm(config, params["norm"], x))[:, 0], cache


def _extend(config, params, samples: Samples, cache, at, compute: ComputeOptions):
    """Logits after one more token, and the updated cache."""
    token = jax.lax.dynamic_slice_in_dim(samples.tokens, at, 1, axis=1)
    positions = rope.positions_of(samples.mask.astype(jnp.int32))
    here = jax.lax.dynamic_slice_in_dim(positions, at, 1, axis=1)
    mask = samples.mask[:, None]  # later positions are not filled yet, so masked
    x = transformer.embed(config, params, token, compute=compute)
    rotation = rope.rotations(config, here, x)
    caches = iter(cache)

    def layer(p, x, window):
        def attend(q, k, v):
            keys, values = next(caches)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, k, at, 1)
            values = jax.lax.dynamic_update_slice_in_dim(values, v, at, 1)
            visible = mask if window is None else mask & masks.window_mask(here, positions, window)
            return attention.plain(q, keys, values, visible, None), (keys, values)

        return transformer.block(config, p, x, rotation, attend, compute=compute)

    x, cache = transformer.through(config, params["layers"], x, layer, compute=compute)
    return transformer.read_out(params, transformer.norm(config, params["norm"], x))[:, 0], cache


def among(token: Int[Array, " batch"], ids: tuple[int, ...]) -> Bool[Array, " batch"]:
    if not ids:
        return jnp.zeros(token.shape, bool)
    return (token[:, None] == jnp.asarray(ids, token.dtype)[None]).any(-1)
