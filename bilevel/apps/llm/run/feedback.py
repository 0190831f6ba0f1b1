"""Files of feedback, read, encoded and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from bilevel.apps.llm.data import batches, encode, jsonl
from bilevel.apps.llm.data.bad_rows import Findings
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.run.settings import Settings

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
    notes: list[str] = []

    def rows(file: Path, found: Findings) -> list[encode.Row]:
        read = jsonl.demonstrations(file, found)
        return encode.encode(read, text, context=context, end=True, file=file, findings=found)

    def pairs(file: Path, found: Findings) -> list[encode.RowPair]:
        read = jsonl.preferences(file, found)
        return encode.encode_pairs(read, text, context=context, end=True, file=file, findings=found)

    def settled(file: Path | None, kind: str, read: Callable[[Path, Findings], list[T]]) -> list[T]:
        if file is None:
            return []
        found = Findings()
        kept = read(file, found)
        found.settle(file, settings.skip_bad)
        if not kept:
            why = " ".join(["", *found.notes])
            raise ValueError(f"{file} has no {kind} that can be used.{why}")
        check_held_out(kind, len(kept), settings)
        notes.extend(found.notes)
        return kept

    found = settled(demos, "demonstrations", rows), settled(prefs, "preferences", pairs)
    check_new(*found, context, settings)
    return Feedback(*found, tuple(notes))


def check_held_out(kind: str, rows: int, settings: Settings) -> None:
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
