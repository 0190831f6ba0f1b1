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
        both = (_encoded(pair.prompt, said, *settings) for said in (pair.chosen, pair.rejected))
        found.append(RowPair(*both))
    return found


def prompt_text(prompt: Text, tokenizer: Tokenizer) -> str:
    """What a policy reads before it answers."""
    return prompt if isinstance(prompt, str) else tokenizer.chat(prompt, generation=True)


def _encoded(prompt, said, source, tokenizer: Tokenizer, context: int, end: bool, where) -> Row:
    try:
        before = prompt_text(prompt, tokenizer)
        after = said if isinstance(said, str) else _said(prompt, said, before, tokenizer)
    except ValueError as error:
        raise where.wrong(str(error)) from error
    asked, answer = tokenizer.encode(before), tokenizer.encode(after)
    if not asked:
        asked = [tokenizer.bos] if tokenizer.bos is not None else []
    if not asked:
        raise where.wrong("the prompt is empty, and the tokenizer has no token to begin with.")
    if end and tokenizer.eos is not None and answer[-1:] != [tokenizer.eos]:
        answer = [*answer, tokenizer.eos]
    if len(asked) >= context:
        raise where.wrong(
            f"the prompt has {len(asked)} tokens; with a response it must fit into {context}. "
            "Shorten it, or raise the length where the model allows it."
        )
    if len(asked) + len(answer) > context:
        raise where.wrong(
            f"prompt and response have {len(asked)} + {len(answer)} tokens, which do not fit into "
            f"{context}. Shorten them, or raise the length where the model allows it."
        )
    return Row(asked, answer, source)


def _said(prompt, said, before: str, tokenizer: Tokenizer) -> str:
    """The response as the template writes it, its end of turn included."""
    whole = tokenizer.chat([*prompt, *said])
    if whole.startswith(before):
        return whole.removeprefix(before).rstrip("\n")
    return said[-1]["content"]
