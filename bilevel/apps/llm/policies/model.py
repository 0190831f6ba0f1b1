"""A decoder as a policy and as the trunk of a reward, for `align`.

Prompts are `PromptBatch`: rows of tokens; y is the tree of a LoRA adapter, or of all parameters. If
the prompts are known beforehand and the responses are short, `prompt_cache` is cheaper.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel.apps.llm.data import batches, encode
from bilevel.apps.llm.models import decoder, parameters, sampling, sharding
from bilevel.apps.llm.models.config import Config
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune, Trained
from bilevel.apps.llm.models.transformer import ComputeOptions, in_parts, read_out
from bilevel.apps.llm.policies.packing import SideBySide
from bilevel.apps.llm.policies.policy import AbstractPolicy, Preferences, Responses, stopped

generate = jax.jit(sampling.generate, static_argnums=0, static_argnames=("drawing", "compute"))


class PromptBatch(NamedTuple):
    """Prompts, padded on the left, one per row."""

    tokens: Int[Array, "n prompt"]
    mask: Bool[Array, "n prompt"]


class Decoder(AbstractPolicy):
    """A checkpoint as a policy.

    Attributes:
        params: the frozen parameters; `None` if all are trained.
        drawing: maximal length and stop tokens of responses. Its temperature, top-k and top-p are
            not used, because learning needs samples of the policy itself.
    """

    config: Config = eqx.field(static=True)
    params: Any
    trained: Trained = eqx.field(static=True, default=Adapter())
    drawing: Drawing = eqx.field(static=True, default=Drawing())
    compute: ComputeOptions = eqx.field(static=True, default=ComputeOptions())

    def weights(self, y: PyTree) -> parameters.Params:
        """All parameters of the decoder."""
        params = self.trained.attach(self.config, stopped(self.params), y)
        return _in_place(self.config, params, self.compute)

    def token_logprobs(self, y, responses):
        params = self.weights(y)
        return in_parts(lambda few: self._spoken(params, few), self.compute.parts, responses)

    def _spoken(self, params: parameters.Params, responses: Responses) -> Float[Array, "n time"]:
        rows = responses.prompts
        if isinstance(rows, SideBySide):
            x = decoder.hidden(
                self.config, params, rows.tokens, rows.segments, compute=self.compute
            )
            return spoken(params, jnp.take_along_axis(x, rows.before[..., None], 1), responses)
        row, start = joined(responses), rows.tokens.shape[1]
        x = decoder.hidden(self.config, params, *row, query_start=start - 1, compute=self.compute)
        return spoken(params, x[:, :-1], responses)

    def logprobs(self, y, several):
        """One row per prompt with all its responses, which do not attend to each other."""
        prompts = several[0].prompts
        if len(several) == 1 or isinstance(prompts, SideBySide):
            return [self.logprob(y, responses) for responses in several]
        params = self.weights(y)
        return in_parts(
            lambda few: self._spoken_beside(params, few), self.compute.parts, list(several)
        )

    def _spoken_beside(
        self, params: parameters.Params, several: list[Responses]
    ) -> list[Float[Array, " n"]]:
        prompts = several[0].prompts
        row = beside(prompts, several)
        x = decoder.hidden_at(
            self.config, params, *row, query_start=prompts.tokens.shape[1] - 1, compute=self.compute
        )
        ends = np.cumsum([1, *(responses.tokens.shape[1] for responses in several)])
        before = [  # the last token of the prompt, which is padded on the left, then its own
            jnp.concatenate([x[:, :1], x[:, begin : end - 1]], axis=1)
            for begin, end in itertools.pairwise(ends)
        ]
        parts = (r.tokens for r in several), (r.mask for r in several)
        every = Responses(prompts, *(jnp.concatenate([*part], axis=1) for part in parts))
        found = spoken(params, jnp.concatenate(before, axis=1), every)
        return [part.sum(axis=1) for part in jnp.split(found, ends[1:-1] - 1, axis=1)]

    def token_divergences(
        self, y: PyTree, reference: PyTree, responses: Responses
    ) -> Float[Array, "n time"]:
        """`KL(π_ref ‖ π_y)` of the next token before every response token; zero outside the mask.

        Prompts are `PromptBatch`. Logits are in memory for one chunk of positions at a time.
        """
        params, old = self.weights(y), stopped(self.weights(reference))

        def some(few: Responses) -> Float[Array, "n time"]:
            row, start = joined(few), few.prompts.tokens.shape[1]
            x, x_old = (
                decoder.hidden(self.config, p, *row, query_start=start - 1, compute=self.compute)
                for p in (params, old)
            )

            def apart(scores, x_old):
                new, log_ref = map(jax.nn.log_softmax, (scores, read_out(old, x_old)))
                return (jnp.exp(log_ref) * (log_ref - new)).sum(axis=-1)

            found = decoder.over_vocabulary(params, x[:, :-1], apart, x_old[:, :-1])
            return jnp.where(few.mask, found, 0)

        return in_parts(some, self.compute.parts, responses)

    def token_states(
        self, y: PyTree, responses: Responses, layers: int
    ) -> Float[Array, "n time width"]:
        """The residual stream after the first `layers` layers, before every response token.

        Prompts are `PromptBatch`. Meaningless outside the mask.
        """
        params = self.weights(y)

        def some(few: Responses) -> Float[Array, "n time width"]:
            row, start = joined(few), few.prompts.tokens.shape[1]
            x = decoder.residual(self.config, params, *row, layers=layers, compute=self.compute)
            return x[:, start - 1 : -1]

        return in_parts(some, self.compute.parts, responses)

    def sample(self, y, prompts: PromptBatch, key, *, temperature=1.0):
        params = jax.tree.map(jax.lax.stop_gradient, self.weights(y))
        drawn = sampling.generate_at(
            self.config,
            params,
            prompts.tokens,
            prompts.mask,
            key=key,
            temperature=temperature,
            drawing=replace(self.drawing, top_k=None, top_p=None),
            compute=self.compute,
        )
        start = prompts.tokens.shape[1]
        return Responses(prompts, drawn.tokens[:, start:], drawn.response[:, start:])

    def prompts_at(self, prompts: PromptBatch, rows: Int[Array, " n"]) -> PromptBatch:
        """The given rows of the prompts, in the form that this policy reads."""
        return jax.tree.map(lambda leaf: leaf[rows], prompts)

    def trunk(self, params: Any, trained: Adapter | None) -> "Trunk":
        """A trunk for a reward on the same prompts: an adapter of `params`, or all parameters."""
        return Trunk(self.config, params, trained or FullFineTune(), self.compute)


class Trunk(eqx.Module):
    """Hidden states after every token of a response, for `reward.Head`.

    Attributes:
        params: frozen parameters, if the trunk of the head is an adapter; `None` if the trunk is
            all parameters.
    """

    config: Config = eqx.field(static=True)
    params: Any = None
    trained: Trained = eqx.field(static=True, default=FullFineTune())
    compute: ComputeOptions = eqx.field(static=True, default=ComputeOptions())

    def __call__(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        params = self.trained.attach(self.config, stopped(self.params), trunk)
        params = _in_place(self.config, params, self.compute)

        def states(responses: Responses):
            row, start = joined(responses), responses.prompts.tokens.shape[1]
            return decoder.hidden(
                self.config, params, *row, query_start=start, compute=self.compute
            )

        return in_parts(states, self.compute.parts, responses)

    def cached(self, params: PyTree, responses: Responses) -> Responses:
        """The same responses with precomputed fixed parts; this class has none."""
        return responses


def joined(responses: Responses) -> tuple[Array, Array]:
    """Prompts and responses as rows of the decoder."""
    prompts = responses.prompts
    tokens = jnp.concatenate(
        [prompts.tokens, responses.tokens.astype(prompts.tokens.dtype)], axis=1
    )
    return tokens, jnp.concatenate([prompts.mask, responses.mask], axis=1).astype(jnp.int32)


def beside(
    prompts: PromptBatch, several: Sequence[Responses]
) -> tuple[Array, Int[Array, "n time"], Bool[Array, "n time time"]]:
    """Prompts with several responses each as rows: tokens, positions, attention mask."""
    masks = [prompts.mask, *(responses.mask for responses in several)]
    tokens = [prompts.tokens, *(r.tokens.astype(prompts.tokens.dtype) for r in several)]
    prompt_lengths = prompts.mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
    places = [jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1 for mask in masks]
    positions = [places[0], *(prompt_lengths + place for place in places[1:])]
    part = np.repeat(np.arange(len(masks)), [mask.shape[1] for mask in masks])
    related = (part[None] == 0) | (part[:, None] == part[None])
    mask = jnp.concatenate(masks, axis=1)
    visible = jnp.asarray(related & np.tri(len(part), dtype=bool))[None] & mask[:, None]
    tokens = jnp.where(mask, jnp.concatenate(tokens, axis=1), 0)
    return tokens, jnp.maximum(jnp.concatenate(positions, axis=1), 0), visible


def spoken(params: parameters.Params, x: Array, responses: Responses) -> Float[Array, "n time"]:
    """Log-probabilities of the tokens of responses, from the states that predict them."""

    def pick(scores, tokens):
        return decoder.chosen(scores, tokens) - jax.nn.logsumexp(scores, axis=-1)

    found = decoder.over_vocabulary(params, x, pick, jnp.where(responses.mask, responses.tokens, 0))
    return jnp.where(responses.mask, found, 0)


def _in_place(
    config: Config, params: parameters.Params, compute: ComputeOptions
) -> parameters.Params:
    """Constrain parameters to their shardings on the mesh of the activations, if there is one."""
    mesh = None if compute.pin is None else compute.pin.mesh
    return sharding.constrain(config, params, mesh) if isinstance(mesh, Mesh) else params


# --- data --------------------------------------------------------------------------------------


def prompt_batch(
    rows: list[encode.Row], *, pad_id: int | None, length: int | None = None
) -> PromptBatch:
    """The prompts of rows."""
    found = batches.padded(rows, pad_id=pad_id, prompt=length)
    return PromptBatch(jnp.asarray(found.prompts), jnp.asarray(found.prompt_mask))


def responses(
    rows: list[encode.Row], prompts: PyTree, *, pad_id: int | None, length: int
) -> Responses:
    """Rows as `Responses`, with prompts in the form that the policy reads."""
    found = batches.padded(rows, pad_id=pad_id, response=length)
    prompts = jax.tree.map(jnp.asarray, prompts)
    return Responses(prompts, jnp.asarray(found.responses), jnp.asarray(found.response_mask))


def preferences(
    pairs: list[encode.RowPair], prompts: PyTree, *, pad_id: int | None, length: int
) -> Preferences:
    """Pairs as `Preferences`, with prompts in the form that the policy reads."""
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    both = (responses(rows, prompts, pad_id=pad_id, length=length) for rows in sides)
    return Preferences(*both)
