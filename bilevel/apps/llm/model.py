"""A decoder as a policy and as the trunk of a reward, for `align`.

`Decoder` is the general one: prompts are `Prompts` of tokens, y is the tree of a LoRA adapter (or
of all parameters). `Remembered` is for data whose prompts are known beforehand and whose responses
are short: what the frozen lower layers make of a prompt is computed once (`remember`), prompts are
then the numbers of their rows, and a step costs the upper layers and the response alone.
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

from bilevel import trees
from bilevel.apps.llm import data as files
from bilevel.apps.llm import decoder, lora, sampling, sharding
from bilevel.apps.llm.config import Config
from bilevel.apps.llm.decoder import How
from bilevel.apps.llm.packing import SideBySide
from bilevel.apps.llm.policy import AbstractPolicy, Preferences, Responses
from bilevel.apps.llm.sampling import Drawing
from bilevel.typing import RandomKey

generate = jax.jit(sampling.generate, static_argnums=0, static_argnames=("drawing", "how"))


class Asked(NamedTuple):
    """Prompts, padded on the left, a row each."""

    tokens: Int[Array, "n prompt"]
    mask: Bool[Array, "n prompt"]


# --- what is trained -------------------------------------------------------------------------


class Adapter(NamedTuple):
    """A LoRA adapter of the last layers; the parameters below them and beside them rest.

    Attributes:
        rank: of every adapted kernel.
        layers: how many of the last layers; all when absent.
        targets: kernels of a layer.
        scale: of the product; usually 2.
    """

    rank: int = 8
    layers: int | None = None
    targets: tuple[str, ...] = lora.TARGETS
    scale: float = 2.0

    def below(self, config: Config) -> int:
        """How many layers rest."""
        layers = config.layers if self.layers is None else self.layers
        if not 1 <= layers <= config.layers:
            raise ValueError(
                f"{layers} layers are to be adapted; the model has {config.layers}, of which at "
                "least 1."
            )
        return config.layers - layers

    def _top(self, config: Config) -> Config:
        below = self.below(config)
        return replace(config, layers=config.layers - below, windows=config.windows[below:])

    def init(self, config: Config, key: RandomKey) -> PyTree:
        """Parameters that change nothing yet."""
        targets = tuple(t for t in self.targets if t != "gate" or config.gated)
        return lora.init(self._top(config), key, rank=self.rank, targets=targets)

    def attach(self, config: Config, params: decoder.Params, y: PyTree) -> decoder.Params:
        return self._with(lora.attach, config, params, y)

    def merge(self, config: Config, params: decoder.Params, y: PyTree) -> decoder.Params:
        return self._with(lora.merge, config, params, y)

    def _with(self, how, config, params, y):
        below = self.below(config)
        params = decoder.unstack(params)
        top = how(params | {"layers": params["layers"][below:]}, y, scale=self.scale)
        return top | {"layers": params["layers"][:below] + top["layers"]}


class Everything(NamedTuple):
    """All parameters are trained; y is their tree, and nothing rests."""

    def below(self, config: Config) -> int:
        return 0

    def attach(self, config, params, y):
        return y

    merge = attach


Trained = Adapter | Everything


# --- the general policy ----------------------------------------------------------------------


class Decoder(AbstractPolicy):
    """A checkpoint as a policy.

    Attributes:
        params: the parameters that rest; `None` where all are trained.
        drawing: how long responses are and what ends them. Temperature, top-k and top-p of it are
            not used: learning needs responses of the policy itself.
    """

    config: Config = eqx.field(static=True)
    params: Any
    trained: Trained = eqx.field(static=True, default=Adapter())
    drawing: Drawing = eqx.field(static=True, default=Drawing())
    how: How = eqx.field(static=True, default=How())

    def weights(self, y: PyTree) -> decoder.Params:
        """All parameters of the decoder."""
        params = self.trained.attach(self.config, _resting(self.params), y)
        return _in_place(self.config, params, self.how)

    def token_logprobs(self, y, responses):
        params, rows = self.weights(y), responses.prompts
        if isinstance(rows, SideBySide):
            x = decoder.hidden(self.config, params, rows.tokens, rows.segments, how=self.how)
            return spoken(params, jnp.take_along_axis(x, rows.before[..., None], 1), responses)
        tokens, segments = joined(responses)
        x = decoder.hidden(self.config, params, tokens, segments, how=self.how)
        x, _ = decoder.predecessors(x, segments)
        return spoken(params, x[:, -responses.tokens.shape[1] :], responses)

    def logprobs(self, y, several):
        """A prompt and its responses are one row, in which no response sees another."""
        asked = several[0].prompts
        if len(several) == 1 or isinstance(asked, SideBySide):
            return [self.logprob(y, responses) for responses in several]
        params = self.weights(y)
        row = beside(asked, several)
        x = decoder.hidden_at(self.config, params, *row, how=self.how)
        start = asked.tokens.shape[1]
        ends = np.cumsum([start, *(responses.tokens.shape[1] for responses in several)])
        before = [  # the last token of the prompt, which is padded on the left, then its own
            jnp.concatenate([x[:, start - 1 : start], x[:, begin : end - 1]], axis=1)
            for begin, end in itertools.pairwise(ends)
        ]
        parts = (r.tokens for r in several), (r.mask for r in several)
        every = Responses(asked, *(jnp.concatenate([*part], axis=1) for part in parts))
        found = spoken(params, jnp.concatenate(before, axis=1), every)
        return [part.sum(axis=1) for part in jnp.split(found, ends[1:-1] - start, axis=1)]

    def sample(self, y, prompts: Asked, key, *, temperature=1.0):
        params = jax.tree.map(jax.lax.stop_gradient, self.weights(y))
        said = sampling.generate_at(
            self.config,
            params,
            prompts.tokens,
            prompts.mask,
            key=key,
            temperature=temperature,
            drawing=replace(self.drawing, top_k=None, top_p=None),
            how=self.how,
        )
        start = prompts.tokens.shape[1]
        return Responses(prompts, said.tokens[:, start:], said.response[:, start:])


class Trunk(eqx.Module):
    """Hidden states after every token of a response, for `reward.Head`.

    Attributes:
        params: where the head's trunk is an adapter of these; `None` where it is all parameters.
    """

    config: Config = eqx.field(static=True)
    params: Any = None
    trained: Trained = eqx.field(static=True, default=Everything())
    how: How = eqx.field(static=True, default=How())

    def __call__(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        params = self.trained.attach(self.config, _resting(self.params), trunk)
        params = _in_place(self.config, params, self.how)
        tokens, segments = joined(responses)
        x = decoder.hidden(self.config, params, tokens, segments, how=self.how)
        return x[:, -responses.tokens.shape[1] :]


def joined(responses: Responses) -> tuple[Array, Array]:
    """Prompts and responses as rows of the decoder."""
    asked = responses.prompts
    tokens = jnp.concatenate([asked.tokens, responses.tokens.astype(asked.tokens.dtype)], axis=1)
    return tokens, jnp.concatenate([asked.mask, responses.mask], axis=1).astype(jnp.int32)


def beside(
    asked: Asked, several: Sequence[Responses]
) -> tuple[Array, Int[Array, "n time"], Bool[Array, "n time time"]]:
    """Prompts with several responses each as rows: tokens, positions, and who sees whom."""
    masks = [asked.mask, *(responses.mask for responses in several)]
    tokens = [asked.tokens, *(r.tokens.astype(asked.tokens.dtype) for r in several)]
    said = asked.mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
    places = [jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1 for mask in masks]
    positions = [places[0], *(said + place for place in places[1:])]
    part = np.repeat(np.arange(len(masks)), [mask.shape[1] for mask in masks])
    related = (part[None] == 0) | (part[:, None] == part[None])
    mask = jnp.concatenate(masks, axis=1)
    seen = jnp.asarray(related & np.tri(len(part), dtype=bool))[None] & mask[:, None]
    tokens = jnp.where(mask, jnp.concatenate(tokens, axis=1), 0)
    return tokens, jnp.maximum(jnp.concatenate(positions, axis=1), 0), seen


def spoken(params: decoder.Params, x: Array, responses: Responses) -> Float[Array, "n time"]:
    """Log-probabilities of the tokens of responses, from the states that predict them."""

    def pick(scores, tokens):
        return decoder.chosen(scores, tokens) - jax.nn.logsumexp(scores, axis=-1)

    found = decoder.over_vocabulary(params, x, pick, jnp.where(responses.mask, responses.tokens, 0))
    return jnp.where(responses.mask, found, 0)


def _resting(params: PyTree) -> PyTree:
    return trees.map(jax.lax.stop_gradient, params)


def _in_place(config: Config, params: decoder.Params, how: How) -> decoder.Params:
    """On the mesh of the activations, split by name; so are their derivatives."""
    mesh = None if how.pin is None else how.pin.mesh
    return sharding.pin(config, params, mesh) if isinstance(mesh, Mesh) else params


# --- with what rests computed once -----------------------------------------------------------


class Memory(NamedTuple):
    """What the resting parameters make of prompts, `joined` on the left of every response."""

    mask: Bool[Array, "n prompt"]
    states: Float[Array, "n prompt width"]  # below the first adapted layer
    keys: Float[Array, "layers n prompt heads dim"]  # rotated
    values: Float[Array, "layers n prompt heads dim"]


class Known(NamedTuple):
    """Numbers of prompts, with what the resting trunk makes of responses that are known, too.

    A policy reads the numbers alone; `RememberedTrunk` gives back the states.
    """

    at: Int[Array, " n"]
    states: Float[Array, "n time width"]


def numbers(prompts: Known | Int[Array, " n"]) -> Int[Array, " n"]:
    return prompts.at if isinstance(prompts, Known) else prompts


def remember(
    config: Config,
    params: decoder.Params,
    prompts: Asked,
    *,
    below: int,
    rows: int = 16,
    how: How = How(),
) -> Memory:
    """Run the prompts through the model once, a few rows at a time."""
    params = decoder.unstack(params)

    @jax.jit
    def one(params, tokens, mask):
        segments = mask.astype(jnp.int32)
        positions, seen = decoder.positions_of(segments), decoder.seen(segments)
        x = decoder.embed(config, params, jnp.where(mask, tokens, 0), how=how)
        rotation = decoder.rotations(config, positions, x)
        states, kept = x, []
        for i, (p, window) in enumerate(zip(params["layers"], config.windows, strict=True)):
            states = x if i == below else states

            def attend(q, k, v, window=window):
                return how.attention(q, k, v, *decoder.within(seen, positions, window)), (k, v)

            x, kv = decoder.block(config, p, x, rotation, attend, how=how)
            kept.append(kv)
        return states, *(jnp.stack(leaves, axis=1) for leaves in zip(*kept, strict=True))

    n, found = len(prompts.tokens), []
    for at in range(0, n, rows):
        few = np.arange(at, at + rows) % n  # the last batch is filled up, so that one program does
        made = one(params, jnp.asarray(prompts.tokens[few]), jnp.asarray(prompts.mask[few]))
        found.append(jax.device_get(made))
    states, keys, values = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    by_layer = (jnp.asarray(np.moveaxis(kept, 1, 0)) for kept in (keys, values))
    return Memory(jnp.asarray(prompts.mask), jnp.asarray(states), *by_layer)


def memory_bytes(config: Config, prompts: Asked) -> int:
    """What `remember` will hold, in float32."""
    n, length = prompts.tokens.shape
    kept = 2 * config.layers * config.kv_heads * config.head_dim + config.width
    return 4 * n * length * kept


def _upper(config, params, x, segments, below: int, reads: int, how: How):
    """What heads read at the last `reads` places, from the states after the first `below` layers.

    The last layer answers at those places alone.
    """
    positions, seen = decoder.positions_of(segments), decoder.seen(segments)
    rotation = decoder.rotations(config, positions, x)
    layers = list(zip(params["layers"], config.windows, strict=True))[below:]
    for p, window in layers[:-1]:

        def attend(q, k, v, window=window):
            return how.attention(q, k, v, *decoder.within(seen, positions, window)), None

        x, _ = decoder.block(config, p, x, rotation, attend, how=how)
    p, window = layers[-1]
    before = x[:, :-reads]
    k_before, v_before = _keys_values(config, p, before, tuple(r[:, :-reads] for r in rotation))

    def attend_last(q, k, v):
        k, v = jnp.concatenate([k_before, k], axis=1), jnp.concatenate([v_before, v], axis=1)
        mask = seen[:, -reads:]
        if window is not None:
            mask = mask & decoder.near(positions[:, -reads:], positions, window)
        return how.attention(q, k, v, mask, None), None

    ends = tuple(r[:, -reads:] for r in rotation)
    x, _ = decoder.block(config, p, x[:, -reads:], ends, attend_last, how=how)
    return decoder.norm(config, params["norm"], x)


def _after(memory: Memory, at, states, said) -> tuple[Array, Array]:
    """Remembered prompts with the states and the mask of what follows, as rows of the decoder."""
    before = jax.lax.stop_gradient(memory.states[at])
    x = jnp.concatenate([before, states.astype(before.dtype)], axis=1)
    return x, jnp.concatenate([memory.mask[at], said], axis=1).astype(jnp.int32)


def _keys_values(config: Config, p, x, rotation):
    """Keys and values of a layer, as `decoder.block` makes them."""
    kept = {}

    def attend(q, k, v):
        kept["k"], kept["v"] = k, v
        return jnp.zeros_like(q), None

    decoder.block(config, p, x, rotation, attend, how=How())  # the rest of it is never computed
    return kept["k"], kept["v"]


def _beside(config, params, memory: Memory, at, tokens, said, below: int, how: How):
    """States of the tokens of responses after the first `below` layers, prompts remembered."""
    segments = jnp.concatenate([memory.mask[at], said], axis=1).astype(jnp.int32)
    positions, seen = decoder.positions_of(segments), decoder.seen(segments)
    time = tokens.shape[1]
    x = decoder.embed(config, params, jnp.where(said, tokens, 0), how=how)
    if not time:
        return x
    here = positions[:, -time:]
    rotation = decoder.rotations(config, here, x)

    layers = decoder.stack(params)["layers"]
    windows = [decoder.EVERYWHERE if w is None else w for w in config.windows]
    each = layers, memory.keys, memory.values, jnp.asarray(windows, jnp.int32)

    def step(x, layer):
        p, keys, values, window = jax.tree.map(lambda leaf: leaf[layer], each)

        def attend(q, k, v):
            k = jnp.concatenate([keys[at].astype(k.dtype), k], axis=1)
            v = jnp.concatenate([values[at].astype(v.dtype), v], axis=1)
            mask = seen[:, -time:] & decoder.near(here, positions, window)
            return how.attention(q, k, v, mask, None), None

        return decoder.block(config, p, x, rotation, attend, how=how)[0], None

    # By number: to scan over slices of them would copy all that rests.
    return jax.lax.scan(step, x, jnp.arange(below))[0]


class Remembered(AbstractPolicy):
    """`Decoder`, with prompts that are row numbers of a memory.

    Equal to it but for rounding. A response is fed through the resting layers alone, so this pays
    where it is shorter than its prompt; drawing one of t tokens takes t passes.
    """

    config: Config = eqx.field(static=True)
    params: Any
    memory: Memory
    trained: Adapter = eqx.field(static=True)
    drawing: Drawing = eqx.field(static=True, default=Drawing(new=1))
    how: How = eqx.field(static=True, default=How())

    def token_logprobs(self, y, responses):
        params = self.trained.attach(self.config, _resting(self.params), y)
        return spoken(params, self._predicting(params, responses), responses)

    def scores(self, y: PyTree, responses: Responses) -> Float[Array, "n time vocab"]:
        """Scores of the whole vocabulary in the place of each token of the responses."""
        params = self.trained.attach(self.config, _resting(self.params), y)
        return decoder.read_out(params, self._predicting(params, responses))

    def _predicting(self, params, responses: Responses):
        """The states that predict each token of the responses."""
        config, below = self.config, self.trained.below(self.config)
        at, time = numbers(responses.prompts), responses.tokens.shape[1]
        tokens, said = responses.tokens[:, :-1], responses.mask[:, :-1]
        resting = _resting(self.params)
        after = _beside(config, resting, self.memory, at, tokens, said, below, self.how)
        row = _after(self.memory, at, after, said)
        return _upper(config, params, *row, below, time, self.how)

    def sample(self, y, prompts, key, *, temperature=1.0):
        params = jax.tree.map(
            jax.lax.stop_gradient, self.trained.attach(self.config, self.params, y)
        )
        prompts = numbers(prompts)
        n, new = prompts.shape[0], self.drawing.new
        plain = replace(self.drawing, top_k=None, top_p=None)
        said = Responses(prompts, jnp.zeros((n, new), jnp.int32), jnp.zeros((n, new), bool))
        done = jnp.zeros(n, bool)
        for t in range(new):
            key, one = jax.random.split(key)  # as `sampling` does
            part = Responses(prompts, said.tokens[:, : t + 1], said.mask[:, : t + 1])
            x = self._predicting(params, part)[:, -1:]
            token, _ = sampling.draw(one, decoder.read_out(params, x)[:, 0], plain, temperature)
            tokens = said.tokens.at[:, t].set(jnp.where(done, 0, token))
            said = said._replace(tokens=tokens, mask=said.mask.at[:, t].set(~done))
            done = done | sampling._among(token, self.drawing.stop)
        return said


class RememberedTrunk(eqx.Module):
    """`Trunk`, with prompts that are row numbers of a memory.

    Attributes:
        params, trained: where the head's trunk is an adapter of these; without, it is all
            parameters, at rest, and best stacked (`decoder.stack`), which makes a small program.
    """

    config: Config = eqx.field(static=True)
    memory: Memory
    params: Any = None
    trained: Adapter | None = eqx.field(static=True, default=None)
    how: How = eqx.field(static=True, default=How())

    def __call__(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        config, said = self.config, responses.mask
        after = self.resting(trunk, responses)
        if self.trained is None:
            return decoder.norm(config, trunk["norm"], after)
        params = self.trained.attach(config, _resting(self.params), trunk)
        below, at = self.trained.below(config), numbers(responses.prompts)
        row = _after(self.memory, at, after, said)
        return _upper(config, params, *row, below, said.shape[1], self.how)

    def resting(self, trunk: PyTree, responses: Responses) -> Float[Array, "n time width"]:
        """What the layers that rest make of the tokens of responses."""
        at, tokens, said, _ = responses
        if isinstance(at, Known):
            return jax.lax.stop_gradient(at.states)
        config, params = self.config, _resting(trunk if self.trained is None else self.params)
        below = config.layers if self.trained is None else self.trained.below(config)
        return _beside(config, params, self.memory, at, tokens, said, below, self.how)


def known(trunk: RememberedTrunk, params: PyTree, responses: Responses) -> Responses:
    """The same responses, with what rests computed once."""
    at = numbers(responses.prompts)
    states = eqx.filter_jit(trunk.resting)(params, responses._replace(prompts=at))
    return responses._replace(prompts=Known(at, states))


# --- data --------------------------------------------------------------------------------------


def asked(rows: list[files.Row], *, pad_id: int | None, length: int | None = None) -> Asked:
    """The prompts of rows."""
    found = files.padded(rows, pad_id=pad_id, prompt=length)
    return Asked(jnp.asarray(found.prompts), jnp.asarray(found.asked))


def responses(
    rows: list[files.Row], prompts: PyTree, *, pad_id: int | None, length: int
) -> Responses:
    """Rows with their prompts as the policy reads them."""
    found = files.padded(rows, pad_id=pad_id, response=length)
    prompts = jax.tree.map(jnp.asarray, prompts)
    return Responses(prompts, jnp.asarray(found.responses), jnp.asarray(found.said))


def preferences(
    pairs: list[files.RowPair], prompts: PyTree, *, pad_id: int | None, length: int
) -> Preferences:
    """Pairs with their prompts as the policy reads them."""
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    both = (responses(rows, prompts, pad_id=pad_id, length=length) for rows in sides)
    return Preferences(*both)
