"""Files of feedback, read, encoded and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from bilevel.apps.llm.data import batches, encode, jsonl
from bilevel.apps.llm.data.bad_rows import Findings
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.run.settings import Settings, Training

T = TypeVar("T")


class Feedback(NamedTuple):
    rows: list[encode.Row]
    pairs: list[encode.RowPair]
    notes: tuple[str, ...]  # sentences to tell the user


def read(
    demos: Path | None, prefs: Path | None, text: Tokenizer, context: int, settings: Settings
) -> Feedback:
    """Demonstrations and preferences as tokens.

    Args:
        context: tokens that a prompt and its response may have together.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence. All bad rows of a
            file are told at once; `settings.skip_bad` leaves them out.
    """
    rows, told = demonstrations(demos, text, context, settings) if demos else ([], ())
    pairs, more = preferences(prefs, text, context, settings) if prefs else ([], ())
    check_new(rows, pairs, context, settings)
    return Feedback(rows, pairs, (*told, *more))


def demonstrations(
    file: Path, text: Tokenizer, context: int, settings: Training
) -> tuple[list[encode.Row], list[str]]:
    """The rows of a file as tokens, and notes on it; as `read`."""

    def read(found: Findings) -> list[encode.Row]:
        rows = jsonl.demonstrations(file, found)
        return encode.encode(rows, text, context=context, end=True, file=file, findings=found)

    return _settled(file, "demonstrations", read, settings)


def preferences(
    file: Path, text: Tokenizer, context: int, settings: Training
) -> tuple[list[encode.RowPair], list[str]]:
    """The pairs of a file as tokens, and notes on it; as `read`."""

    def read(found: Findings) -> list[encode.RowPair]:
        pairs = jsonl.preferences(file, found)
        return encode.encode_pairs(
            pairs, text, context=context, end=True, file=file, findings=found
        )

    return _settled(file, "preferences", read, settings)


def _settled(
    file: Path, kind: str, read: Callable[[Findings], list[T]], settings: Training
) -> tuple[list[T], list[str]]:
    found = Findings()
    kept = read(found)
    found.settle(file, settings.skip_bad)
    if not kept:
        why = " ".join(["", *found.notes])
        raise ValueError(f"{file} has no {kind} that can be used.{why}")
    check_held_out(kind, len(kept), settings)
    return kept, found.notes


def check_held_out(kind: str, rows: int, settings: Training) -> None:
    """Something must be left to learn from."""
    if rows > 1 and batches.held_out(rows, settings.held_out) == rows:
        raise ValueError(
            f"held_out is {settings.held_out:g}, which leaves none of the {rows} {kind} to learn "
            "from. Lower it, or give more of them."
        )


def check_new(
    rows: list[encode.Row], pairs: list[encode.RowPair], context: int, settings: Settings
) -> None:
    """A prompt and what is drawn must fit into the context."""
    prompt = max(len(row.prompt) for row in (*rows, *(pair.chosen for pair in pairs)))
    if settings.new is not None and prompt + settings.new > context:
        raise ValueError(
            f"new is {settings.new} and the longest prompt has {prompt} tokens, which together do "
            f"not fit into {context}. Lower --new to {context - prompt}, or shorten the prompts."
        )
