"""A decoder as a policy and as the trunk of a reward, with a cache of the frozen layers.

For data with prompts known beforehand and short responses: the frozen lower layers are run once on
each prompt (`cache_prompts`). A prompt is then a row index, and a step only computes the upper
layers and the response.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel.apps.llm.models import masks, parameters, rope, sampling, transformer
from bilevel.apps.llm.models.config import Config
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter
from bilevel.apps.llm.models.transformer import ComputeOptions, in_parts
from bilevel.apps.llm.policies.model import PromptBatch, spoken
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses, stopped


class PromptCache(NamedTuple):
    """Hidden states, keys and values of the prompts under the frozen parameters."""

    mask: Bool[Array, "n prompt"]
    states: Float[Array, "n prompt width"]  # below the first adapted layer
    keys: Float[Array, "layers n prompt heads dim"]  # rotated
    values: Float[Array, "layers n prompt heads dim"]


class Known(NamedTuple):
    """Row indices of prompts, with the states of the frozen trunk for fixed responses.

    A policy reads only the indices; `CachedTrunk` returns the states.
    """

    at: Int[Array, " n"]
    states: Float[Array, "n time width"]


def numbers(prompts: Known | Int[Array, " n"]) -> Int[Array, " n"]:
    return prompts.at if isinstance(prompts, Known) else prompts


def cache_prompts(
    config: Config,
    params: parameters.Params,
    prompts: PromptBatch,
    *,
    below: int,
    rows: int = 16,
    compute: ComputeOptions = ComputeOptions(),
) -> PromptCache:
    """Run the prompts through the model once, `rows` rows at a time."""
    params = parameters.unstack(params)

    @jax.jit
    def one(params, tokens, mask):
        segments = mask.astype(jnp.int32)
        positions, mask_of_segments = rope.positions_of(segments), masks.segment_mask(segments)
        x = transformer.embed(config, params, jnp.where(mask, tokens, 0), compute=compute)
        rotation = rope.rotations(config, positions, x)
        states, kept = x, []
        for i, (p, window) in enumerate(zip(params["layers"], config.windows, strict=True)):
            states = x if i == below else states

            def attend(q, k, v, window=window):
                return compute.attention(
                    q, k, v, *masks.attention_mask(mask_of_segments, positions, window)
                ), (k, v)

            x, kv = transformer.block(config, p, x, rotation, attend, compute=compute)
            kept.append(kv)
        return states, *(jnp.stack(leaves, axis=1) for leaves in zip(*kept, strict=True))

    n, found = len(prompts.tokens), []
    for at in range(0, n, rows):
        few = np.arange(at, at + rows) % n  # pad the last batch, so that one program serves all
        made = one(params, jnp.asarray(prompts.tokens[few]), jnp.asarray(prompts.mask[few]))
        found.append(jax.device_get(made))
    states, keys, values = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    by_layer = (jnp.asarray(np.moveaxis(kept, 1, 0)) for kept in (keys, values))
    return PromptCache(jnp.asarray(prompts.mask), jnp.asarray(states), *by_layer)


def memory_bytes(config: Config, prompts: PromptBatch) -> int:
    """The size of the result of `cache_prompts` in bytes, in float32."""
    n, length = prompts.tokens.shape
    kept = 2 * config.layers * config.kv_heads * config.head_dim + config.width
    return 4 * n * length * kept


def _upper(config, params, x, segments, below: int, reads: int, compute: ComputeOptions):
    """The final states at the last `reads` positions, from those after the first `below` layers.

    The last layer has queries only at these positions.
    """
    positions, mask_of_segments = rope.positions_of(segments), masks.segment_mask(segments)
    rotation = rope.rotations(config, positions, x)
    layers = list(zip(params["layers"], config.windows, strict=True))[below:]
    for p, window in layers[:-1]:

        def attend(q, k, v, window=window):
            return compute.attention(
                q, k, v, *masks.attention_mask(mask_of_segments, positions, window)
            ), None

        x, _ = transformer.block(config, p, x, rotation, attend, compute=compute)
    p, window = layers[-1]
    before = x[:, :-reads]
    k_before, v_before = _keys_values(config, p, before, tuple(r[:, :-reads] for r in rotation))

    def attend_last(q, k, v):
        k, v = jnp.concatenate([k_before, k], axis=1), jnp.concatenate([v_before, v], axis=1)
        mask = mask_of_segments[:, -reads:]
        if window is not None:
            mask = mask & masks.window_mask(positions[:, -reads:], positions, window)
        return compute.attention(q, k, v, mask, None), None

    ends = tuple(r[:, -reads:] for r in rotation)
    x, _ = transformer.block(config, p, x[:, -reads:], ends, attend_last, compute=compute)
    return transformer.norm(config, params["norm"], x)


def _after(cache: PromptCache, at, states, response_mask) -> tuple[Array, Array]:
    """Rows of the decoder: cached prompts, then the states and the mask of the responses."""
    before = jax.lax.stop_gradient(cache.states[at])
    x = jnp.concatenate([before, states.astype(before.dtype)], axis=1)
    return x, jnp.concatenate([cache.mask[at], response_mask], axis=1).astype(jnp.int32)


def _keys_values(config: Config, p, x, rotation):
    """Keys and values of a layer, as `transformer.block` makes them."""
    kept = {}

    def attend(q, k, v):
        kept["k"], kept["v"] = k, v
        return jnp.zeros_like(q), None

    transformer.block(
        config, p, x, rotation, attend, compute=ComputeOptions()
    )  # the rest of it is never computed
    return kept["k"], kept["v"]


def _beside(
    config,
    params,
    cache: PromptCache,
    at,
    tokens,
    response_mask,
    below: int,
    compute: ComputeOptions,
):
    """States of the response tokens after the first `below` layers, with cached prompts."""
    segments = jnp.concatenate([cache.mask[at], response_mask], axis=1).astype(jnp.int32)
    positions, mask_of_segments = rope.positions_of(segments), masks.segment_mask(segments)
    time = tokens.shape[1]
    x = transformer.embed(config, params, jnp.where(response_mask, tokens, 0), compute=compute)
    if not time:
        return x
    here = positions[:, -time:]
    rotation = rope.rotations(config, here, x)

    layers = parameters.stack(params)["layers"]
    windows = [masks.EVERYWHERE if w is None else w for w in config.windows]
    each = layers, cache.keys, cache.values, jnp.asarray(windows, jnp.int32)

    def step(x, layer):
        p, keys, values, window = jax.tree.map(lambda leaf: leaf[layer], each)

        def attend(q, k, v):
            k = jnp.concatenate([keys[at].astype(k.dtype), k], axis=1)
            v = jnp.concatenate([values[at].astype(v.dtype), v], axis=1)
            mask = mask_of_segments[:, -time:] & masks.window_mask(here, positions, window)
            return compute.attention(q, k, v, mask, None), None

        return transformer.block(config, p, x, rotation, attend, compute=compute)[0], None

    # A scan over indices: a scan over slices would copy all frozen parameters.
    return jax.lax.scan(step, x, jnp.arange(below))[0]


class CachedDecoder(AbstractPolicy):
    """`Decoder` with prompts that are row indices of a `PromptCache`.

    Equal to `Decoder` up to rounding. The frozen layers run only on the response, so this pays off
    if responses are shorter than prompts. Sampling a response of t tokens takes t passes.
    """

    config: Config = eqx.field(static=True)
    params: Any
    cache: PromptCache
    trained: Adapter = eqx.field(static=True)
    drawing: Drawing = eqx.field(static=True, default=Drawing(new=1))
    compute: ComputeOptions = eqx.field(static=True, default=ComputeOptions())

    def token_logprobs(self, y, responses):
        params = self.trained.attach(self.config, stopped(self.params), y)

        def few(rows: Responses):
            return spoken(params, self._predicting(params, rows), rows)

        return in_parts(few, self.compute.parts, responses)

    def scores(self, y: PyTree, responses: Responses) -> Float[Array, "n time vocab"]:
        """Logits over the vocabulary at the position of each response token."""
        params = self.trained.attach(self.config, stopped(self.params), y)
        return transformer.read_out(params, self._predicting(params, responses))

    def _predicting(self, params, responses: Responses):
        """The states that predict each token of the responses."""
        config, below = self.config, self.trained.below(self.config)
        at, time = numbers(responses.prompts), responses.tokens.shape[1]
        tokens, response_mask = responses.tokens[:, :-1], responses.mask[:, :-1]
        resting = stopped(self.params)
        after = _beside(config, resting, self.cache, at, tokens, response_mask, below, self.compute)
        row = _after(self.cache, at, after, response_mask)
        return _upper(config, params, *row, below, time, self.compute)

    def sample(self, y, prompts, key, *, temperature=1.0):
        params = jax.tree.map(
            jax.lax.stop_gradient, self.trained.attach(self.config, self.params, y)
        )
        prompts = numbers(prompts)
        n, new = prompts.shape[0], self.drawing.new
        plain = replace(self.drawing, top_k=None, top_p=None)
        drawn = Responses(prompts, jnp.zeros((n, new), jnp.int32), jnp.zeros((n, new), bool))
        done = jnp.zeros(n, bool)
        for t in range(new):
            key, one = jax.random.split(key)  # as `sampling` does
            part = Responses(prompts, drawn.tokens[:, : t + 1], drawn.mask[:, : t + 1])
            x = self._predicting(params, part)[:, -1:]
            token, _ = sampling.draw(one, transformer.read_out(params, x)[:, 0], plain, temperature)
            tokens = drawn.tokens.at[:, t].set(jnp.where(done, 0, token))
            drawn = drawn._replace(tokens=tokens, mask=drawn.mask.at[:, t].set(~done))
            done = done | sampling.among(token, self.drawing.stop)
        return drawn

    def prompts_at(self, prompts: PromptBatch, rows: Int[Array, " n"]) -> Int[Array, " n"]:
        """The given rows of the prompts, in the form that this policy reads: row indices."""
        return rows

    def trunk(self, params: Any, trained: Adapter | None) -> "CachedTrunk":
        """A trunk for a reward on the same prompts: an adapter of `params`, or all parameters."""
        return CachedTrunk(self.config, self.cache, params, trained, self.compute)


class CachedTrunk(eqx.Module):
    """`Trunk` with prompts that are row indices of a `PromptCache`.

    Attributes:
        params, trained: frozen parameters and adapter, if the trunk of the head is an adapter. If
            not, the trunk is all parameters, frozen, and best stacked (`parameters.stack`), which
            gives a small program.
    """

    config: Config = eqx.field(static=True)
    cache: PromptCache
    params: Any = None
    trained: Adapter | None = eqx.field(static=True, default=None)
    compute: ComputeOptions = eqx.field(static=True, default=ComputeOptions())

    def __call__(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        return in_parts(lambda few: self._states(trunk, few), self.compute.parts, responses)

    def _states(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        config, response_mask = self.config, responses.mask
        after = self.resting(trunk, responses)
        if self.trained is None:
            return transformer.norm(config, trunk["norm"], after)
        params = self.trained.attach(config, stopped(self.params), trunk)
        below, at = self.trained.below(config), numbers(responses.prompts)
        row = _after(self.cache, at, after, response_mask)
        return _upper(config, params, *row, below, response_mask.shape[1], self.compute)

    def resting(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        """Hidden states of the response tokens, as the last frozen layer returns them."""
        at, tokens, response_mask, _ = responses
        if isinstance(at, Known):
            return jax.lax.stop_gradient(at.states)
        config, params = self.config, stopped(trunk if self.trained is None else self.params)
        below = config.layers if self.trained is None else self.trained.below(config)
        return _beside(config, params, self.cache, at, tokens, response_mask, below, self.compute)

    def cached(self, params: PyTree, responses: Responses) -> Responses:
        """The same responses, with the states of the frozen layers computed once."""
        at = numbers(responses.prompts)
        states = eqx.filter_jit(self.resting)(params, responses._replace(prompts=at))
        return responses._replace(prompts=Known(at, states))
