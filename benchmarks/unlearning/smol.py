"""SmolLM2-135M-Instruct with an adapter of its last layers.

What the resting layers make of a row is computed once. Its vocabulary is cut to the tokens of the
file, a tenth, which makes a step cheaper by a half: the output layer is as large as eight others.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.unlearning.learner import LENGTH, Learner, Pairs, Settings
from bilevel.apps.llm.data import batches
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.models import decoder, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter
from bilevel.apps.llm.policies import model, packing
from bilevel.apps.llm.policies.model import Decoder, PromptBatch
from bilevel.apps.llm.policies.packing import Packing, SideBySide
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses

ADAPTER = Adapter(rank=32, layers=2)
DRAWN, END = 64, 0  # tokens of an answer that is drawn, and the one that ends it
AT_ONCE = 4  # rows of the resting layers
SETTINGS = Settings(
    steps=600,
    batch=2,
    rate=3e-3,
    forgetting_rate=3e-4,
    forgetting={"forget01": 50, "forget05": 75},
    longest=72,
    steered=1,
    steering=620.0,  # as long as the states are
    drawn=16,
)


class Known(NamedTuple):
    """Prompts with their responses, of which the states below the adapter are known."""

    asked: PromptBatch | None  # the prompts alone, to draw from
    states: Float[Array, "n time width"]
    segments: Int[Array, "n time"]  # see `SideBySide`
    before: Int[Array, "n said"]


class Upper(AbstractPolicy):
    """The adapted layers alone, on `Known` rows; all layers draw."""

    whole: Decoder

    def token_logprobs(self, y, responses):
        top, rows = self._above(responses.prompts)
        return top.token_logprobs(y, responses._replace(prompts=rows))

    def token_states(self, y, responses, layers: int):
        """After so many adapted layers, before every response token."""
        top, rows = self._above(responses.prompts)
        x = decoder.residual(top.config, top.weights(y), rows.tokens, rows.segments, layers=layers)
        return jnp.take_along_axis(x, rows.before[..., None], axis=1)

    def sample(self, y, prompts, key, *, temperature=1.0):
        return self.whole.sample(y, prompts.asked, key, temperature=temperature)

    def _above(self, known: Known) -> tuple[Decoder, SideBySide]:
        """A decoder that embeds a token in its context as its state."""
        config, params, trained = self.whole.config, self.whole.params, self.whole.trained
        below, (n, time, width) = trained.below(config), known.states.shape
        windows = config.windows[below:]
        config = replace(config, layers=len(windows), windows=windows, tied=False)
        params = {
            "embed": known.states.reshape(-1, width),
            "layers": params["layers"][below:],
            "norm": params["norm"],
            "head": {"kernel": params["embed"].T},
        }
        places = jnp.arange(n * time, dtype=jnp.int32).reshape(n, time)
        return Decoder(config, params, trained), SideBySide(places, known.segments, known.before)


class Text:
    """Text to tokens and back; tokens are numbered by their place among those of the file."""

    def __init__(self, core: tokenizer.Tokenizer, pairs: dict[str, Pairs]):
        self.core, end = core, core.stop[0]
        told = [text for rows in pairs.values() for pair in rows for text in _said(*pair)]
        found = {i for text in told for i in core.encode(text)}
        self.kept = [end, *sorted(found - {end})]  # numbers in the whole vocabulary
        self.number = {i: n for n, i in enumerate(self.kept)}

    def rows(self, pairs: Pairs) -> list[Row]:
        found = []
        for pair in pairs:
            asked, said = ([self.number[i] for i in self.core.encode(one)] for one in _said(*pair))
            found.append(Row(asked, [*said, END], None))
        return found

    def decode(self, ids: Iterable[int]) -> str:
        return self.core.decode([self.kept[i] for i in ids]).strip()


def _said(asked: str, said: str) -> tuple[str, str]:
    return f"{asked}\n", f" {said}"


class States:
    """States of rows below the adapter; those of a row are computed once."""

    def __init__(self, whole: Decoder):
        self.whole, self.kept = whole, {}
        layers = whole.trained.below(whole.config)
        self.run = jax.jit(partial(decoder.residual, whole.config, layers=layers))

    def of(self, tokens: np.ndarray, segments: np.ndarray) -> Float[Array, "n time width"]:
        """Of sequences side by side, zero at padding."""
        places = [(i, segments[i] == k) for i in range(len(tokens))
                  for k in range(1, segments[i].max() + 1)]  # fmt: skip
        keys = [tuple(tokens[i][here].tolist()) for i, here in places]
        self._compute([key for key in dict.fromkeys(keys) if key not in self.kept])
        found = np.zeros((*tokens.shape, self.whole.config.width), np.float32)
        for key, (i, here) in zip(keys, places, strict=True):
            found[i][here] = self.kept[key]
        return jnp.asarray(found)

    def _compute(self, sequences: list[tuple[int, ...]]) -> None:
        found = batches.packed([Row([*one], [], None) for one in sequences], LENGTH)
        for at in range(0, len(found.tokens), AT_ONCE):
            few = np.arange(at, at + AT_ONCE) % len(found.tokens)
            tokens, segments = found.tokens[few], found.segments[few]
            states = np.asarray(self.run(self.whole.params, tokens, segments))
            for one, numbers, x in zip(tokens, segments, states, strict=True):
                for k in range(1, numbers.max() + 1):
                    here = numbers == k
                    self.kept[tuple(one[here].tolist())] = x[here]

    def arrays(self, rows, *, prompt=None, response=None) -> Responses:
        """One row each; with a length of the prompt, it can be drawn from."""
        whole = [[*row.prompt, *row.response] for row in rows]
        tokens, mask = tokenizer.pad(whole)
        length = max(len(row.response) for row in rows) if response is None else response
        said = model.responses(rows, None, pad_id=END, length=length)
        start = np.array([[len(row.prompt) - 1] for row in rows], np.int32)
        before = jnp.where(said.mask, start + np.arange(length, dtype=np.int32), 0)
        asked = prompt and model.prompt_batch(rows, pad_id=END, length=prompt)
        segments = mask.astype(np.int32)
        states = self.of(tokens, segments)
        return said._replace(prompts=Known(asked, states, jnp.asarray(segments), before))

    def packed(self, rows: list[Row]) -> Packing:
        found = packing.packed(rows, LENGTH)
        side: SideBySide = found.responses.prompts
        states = self.of(np.asarray(side.tokens), np.asarray(side.segments))
        known = Known(None, states, side.segments, side.before)
        return found._replace(responses=found.responses._replace(prompts=known))


def learner(folder: Path, pairs: dict[str, Pairs]) -> Learner:
    """From a checkpoint folder."""
    loaded, core = checkpoint.load(folder, dtype=jnp.float32), tokenizer.load(folder)
    text = Text(core, pairs)
    params = parameters.unstack(loaded.params)
    params = {**params, "embed": params["embed"][jnp.asarray(text.kept)]}
    config = replace(loaded.config, vocab_size=len(text.kept))
    whole = Decoder(config, params, ADAPTER, Drawing(new=DRAWN, stop=(END,)))
    states, start = States(whole), ADAPTER.init(config, jax.random.key(0))
    return Learner(Upper(whole), start, config.width, text, states.arrays, states.packed, SETTINGS)
