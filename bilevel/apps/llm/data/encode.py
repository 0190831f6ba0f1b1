"""Demonstrations and preferences to token ids, with the mask of the response."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bilevel.apps.llm.data.jsonl import Demonstration, LineRef, Pair, Text
from bilevel.apps.llm.hub.tokenizer import Tokenizer


class Row(NamedTuple):
    """A prompt and a response as tokens; the response ends with a stop token where asked for."""

    prompt: list[int]
    response: list[int]
    source: str | None


class RowPair(NamedTuple):
    chosen: Row
    rejected: Row


def encode(
    rows: Sequence[Demonstration],
    tokenizer: Tokenizer,
    *,
    context: int,
    end: bool,
    file: str | Path,
) -> list[Row]:
    """Demonstrations as tokens.

    Args:
        context: tokens that a prompt and its response may have together.
        end: put a stop token after plain text; after messages the template says what stands.
        file: for messages.

    Raises:
        ValueError: a row that is too long, or messages that the template refuses.
    """
    return [
        _encoded(row.prompt, row.response, row.source, tokenizer, context, end,
                 LineRef(Path(file), row.line))
        for row in rows
    ]  # fmt: skip


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, context: int, end: bool, file: str | Path
) -> list[RowPair]:
    """Preferences as tokens; as `encode`."""
    found = []
    for pair in pairs:
        settings = pair.source, tokenizer, context, end, LineRef(Path(file), pair.line)
        both = (
            _encoded(pair.prompt, response, *settings) for response in (pair.chosen, pair.rejected)
        )
        found.append(RowPair(*both))
    return found


def prompt_text(prompt: Text, tokenizer: Tokenizer) -> str:
    """What a policy reads before it answers."""
    return prompt if isinstance(prompt, str) else tokenizer.chat(prompt, generation=True)


def _encoded(prompt, response, source, tokenizer: Tokenizer, context: int, end: bool, where) -> Row:
    try:
        templated_prompt = prompt_text(prompt, tokenizer)
        response_text = (
            response
            if isinstance(response, str)
            else _templated_response(prompt, response, templated_prompt, tokenizer)
        )
    except ValueError as error:
        raise where.wrong(str(error)) from error
    prompt_ids, response_ids = tokenizer.encode(templated_prompt), tokenizer.encode(response_text)
    if not prompt_ids:
        prompt_ids = [tokenizer.bos] if tokenizer.bos is not None else []
    if not prompt_ids:
        raise where.wrong("the prompt is empty, and the tokenizer has no token to begin with.")
    if end and tokenizer.eos is not None and response_ids[-1:] != [tokenizer.eos]:
        response_ids = [*response_ids, tokenizer.eos]
    if len(prompt_ids) >= context:
        raise where.wrong(
            f"the prompt has {len(prompt_ids)} tokens; with a response it must fit into {context}. "
            "Shorten it, or raise the length where the model allows it."
        )
    if len(prompt_ids) + len(response_ids) > context:
        raise where.wrong(
            f"prompt and response have {len(prompt_ids)} + {len(response_ids)} tokens, which do "
            f"not fit into {context}. Shorten them, or raise the length where the model allows it."
        )
    return Row(prompt_ids, response_ids, source)


def _templated_response(prompt, response, templated_prompt: str, tokenizer: Tokenizer) -> str:
    """The response as the template writes it, its end of turn included."""
    whole = tokenizer.chat([*prompt, *response])
    if whole.startswith(templated_prompt):
        return whole.removeprefix(templated_prompt).rstrip("\n")
    return response[-1]["content"]
