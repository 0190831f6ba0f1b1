"""A model and several files of demonstrations, read, checked and put into arrays."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.apps.llm.data import batches, encode
from bilevel.apps.llm.hub import find
from bilevel.apps.llm.hub.checkpoint import Checkpoint
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.models.lora import TARGETS
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune
from bilevel.apps.llm.models.transformer import ComputeOptions
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses
from bilevel.apps.llm.run import feedback
from bilevel.apps.llm.run.settings import Dtype, Tuning


class Opened(NamedTuple):
    """A model, and the rows of each file by name."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    policy: model.Decoder
    start: PyTree  # parameters of the policy: the model as it was given
    rows: dict[str, list[encode.Row]]
    notes: tuple[str, ...]

    def responses(self, rows: list[encode.Row]) -> Responses:
        """Rows as arrays; those of all files have the same lengths."""
        every = [row for some in self.rows.values() for row in some]
        prompt = max(len(row.prompt) for row in every)
        said = max(len(row.response) for row in every)
        asked = model.prompt_batch(rows, pad_id=self.tokenizer.pad, length=prompt)
        return model.responses(rows, asked, pad_id=self.tokenizer.pad, length=said)

    def merged(self, y: PyTree) -> Checkpoint:
        """The checkpoint with what was learned."""
        params = self.policy.trained.merge(self.checkpoint.config, self.checkpoint.params, y)
        return replace(self.checkpoint, params=params)


def open_files(model_name: Path, files: Mapping[str, Path], settings: Tuning) -> Opened:
    """Read and check everything; `model_name` is what `find.find` takes.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence.
    """
    found = find.find(model_name)
    text, about, length = found.tokenizer, found.config, settings.length
    if length is not None and length > about.max_length:
        raise ValueError(f"the model reads {about.max_length} tokens; {length} were asked for.")
    rows, notes = {}, []
    for name, file in files.items():
        rows[name], told = feedback.demonstrations(file, text, length or about.max_length, settings)
        notes += told
    loaded = found.load(dtype=jnp.float32)
    longest = max(len(row.response) for some in rows.values() for row in some)
    policy, start = decoder(loaded, Drawing(new=longest, stop=text.stop), settings)
    return Opened(loaded, text, policy, start, rows, tuple(notes))


def decoder(loaded: Checkpoint, drawing: Drawing, settings: Tuning) -> tuple[model.Decoder, PyTree]:
    """A policy as the options say, and the parameters at which it is the model given."""
    config, params = loaded.config, loaded.params
    dtype = None if settings.dtype is Dtype.FLOAT32 else jnp.dtype(settings.dtype.value)
    compute = ComputeOptions(dtype=dtype, parts=settings.accumulate)
    if settings.rank == 0:
        return model.Decoder(config, None, FullFineTune(), drawing, compute), params
    adapter = Adapter(settings.rank, settings.layers, settings.targets or TARGETS, settings.scale)
    start = adapter.init(config, jax.random.key(settings.seed))
    return model.Decoder(config, params, adapter, drawing, compute), start


def parted(rows: list[encode.Row], settings: Tuning) -> tuple[list[encode.Row], list[encode.Row]]:
    """Rows to learn from, and rows to judge by."""
    return batches.split(rows, settings.held_out, settings.seed) if len(rows) > 1 else (rows, [])
