"""Sequence packing: several demonstrations per row of fixed length, with little padding."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel.apps.llm.data import batches, encode
from bilevel.apps.llm.policies.policy import Responses


class SideBySide(NamedTuple):
    """Prompts with their responses, several per row, in the form that `model.Decoder` reads.

    The tokens of `Responses` are then those of all responses in a row, concatenated, and the
    log-probability of a row is the sum over its responses.
    """

    tokens: Int[Array, "n time"]
    segments: Int[Array, "n time"]  # 0 at padding, else the number of the sequence in its row
    before: Int[Array, "n said"]  # position of the token before each response token


class Packing(NamedTuple):
    responses: Responses
    per_row: float  # responses in a row, on average: `baselines.SFT(per_row=...)`


def packed(rows: Sequence[encode.Row], length: int) -> Packing:
    """Pack sequences into rows of `length` tokens.

    Raises:
        ValueError: a sequence is longer than that, or has no prompt.
    """
    if not all(row.prompt for row in rows):
        raise ValueError("a row has no prompt; nothing would predict the first token it says.")
    found = batches.packed(rows, length)
    places = [np.flatnonzero(row) for row in found.response]
    at, response_mask = np.zeros((2, len(places), max(map(len, places))), np.int32)
    for i, here in enumerate(places):
        at[i, : len(here)], response_mask[i, : len(here)] = here, 1
    tokens = np.take_along_axis(found.tokens, at, axis=1)
    before = np.where(response_mask, at - 1, 0)
    prompts = SideBySide(*map(jnp.asarray, (found.tokens, found.segments, before)))
    responses = Responses(prompts, jnp.asarray(tokens), jnp.asarray(response_mask > 0))
    return Packing(responses, len(rows) / len(places))
