"""Files of demonstrations and preferences, checked row by row.

A line of demonstrations is one of

    {"prompt": "2 + 2 =", "completion": " 4"}
    {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

and a line of preferences one of

    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    {"chosen": [whole conversation], "rejected": [the same, but for the last message]}
    {"chosen": "whole text", "rejected": "another with the same beginning"}

Plain text is taken as it stands; messages go through the chat template, with the line's "tools" and
"chat_template_kwargs". Where one of prompt and response is text and the other messages, the text is
the message of the user or the assistant. Any line may have a "source". Files are JSONL, plain or
compressed by gzip, or parquet.
"""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.apps.llm.data.bad_rows import Findings, LineRef, settled
from bilevel.apps.llm.data.tables import Record, kind, records

Messages = list[dict[str, Any]]
Text = str | Messages  # plain text, or messages

TURN = "\n\nAssistant:"  # before a response, in files of hh-rlhf
TEMPLATE = ("tools", "chat_template_kwargs")
DEMONSTRATION = ("prompt", "completion", "messages", "source", *TEMPLATE)
PREFERENCE = ("prompt", "chosen", "rejected", "source", *TEMPLATE)
OURS = ("messages", "add_generation_prompt", "generation")  # names that a row does not set


class Demonstration(NamedTuple):
    """A prompt and the response to learn; `line` counts from 1, `words` are for the template."""

    prompt: Text
    response: Text
    source: str | None
    line: int
    words: Mapping[str, Any] = {}


class Pair(NamedTuple):
    """A prompt and two responses, the better one first."""

    prompt: Text
    chosen: Text
    rejected: Text
    source: str | None
    line: int
    words: Mapping[str, Any] = {}


def demonstrations(file: str | Path, findings: Findings | None = None) -> list[Demonstration]:
    """Read demonstrations.

    Args:
        findings: where bad rows are kept; absent, they raise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: rows that are no demonstrations; the message tells file, lines and why.
    """
    with settled(findings, file) as found:
        rows = records(file, found)
        _name_unread(rows, DEMONSTRATION, file, found)
        return found.each(rows, lambda row: _demonstration(*row))


def preferences(file: str | Path, findings: Findings | None = None) -> list[Pair]:
    """Read preferences; raises as `demonstrations` does."""
    with settled(findings, file) as found:
        rows = records(file, found)
        _name_unread(rows, PREFERENCE, file, found)
        return found.each(rows, lambda row: _pair(*row))


def _name_unread(rows: list[Record], known: tuple[str, ...], file, findings: Findings) -> None:
    """A note on the keys that mean nothing here."""
    count = collections.Counter(key for row in rows for key in row.content if key not in known)
    named = ", ".join(
        f"{json.dumps(key)} ({n} row{'s' * (n > 1)})" for key, n in count.most_common(12)
    )
    more = f" and {len(count) - 12} more" if len(count) > 12 else ""
    if count:
        findings.notes.append(f"{file}: keys that are not read: {named}{more}.")


# --- one row -----------------------------------------------------------------------------------


def _demonstration(record: dict[str, Any], where: LineRef) -> Demonstration:
    rest = _source(record, where), where.line
    if "messages" in record:
        if "prompt" in record or "completion" in record:
            raise where.wrong('both "messages" and "prompt" or "completion"; give one of them.')
        messages = _messages(record, "messages", where, ends=True)
        return Demonstration(messages[:-1], messages[-1:], *rest, _words(record, where))
    if "chosen" in record or "rejected" in record:
        raise where.wrong('a preference ("chosen", "rejected") where a demonstration is needed.')
    prompt = _text_or_messages(record, "prompt", where)
    response = _text_or_messages(record, "completion", where, ends=True)
    if isinstance(prompt, str) and isinstance(response, str):
        return Demonstration(prompt, response, *rest, _no_words(record, where))
    before, last = _conversation(prompt, response, "completion", where)
    return Demonstration(before, last, *rest, _words(record, where))


def _pair(record: dict[str, Any], where: LineRef) -> Pair:
    rest = _source(record, where), where.line
    chosen, rejected = (
        _text_or_messages(record, name, where, ends=True) for name in ("chosen", "rejected")
    )
    if type(chosen) is not type(rejected):
        raise where.wrong('"chosen" and "rejected" differ in kind; both text, or both messages.')
    prompt = _text_or_messages(record, "prompt", where) if "prompt" in record else None
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        if prompt is None:
            prompt, chosen, rejected = _shared_beginning(chosen, rejected, where)
        return Pair(prompt, chosen, rejected, *rest, _no_words(record, where))
    (before, last), (same, worse) = (
        _conversation(prompt, said, name, where)
        for said, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    if before != same:
        raise where.wrong(
            '"chosen" and "rejected" differ before their last message; they must answer the same '
            "prompt."
        )
    if not before:
        raise where.wrong('"prompt" is missing, and "chosen" holds no message before the last.')
    return Pair(before, last, worse, *rest, _words(record, where))


def _conversation(
    prompt: Text | None, said: Text, name: str, where: LineRef
) -> tuple[Messages, Messages]:
    """The messages before a response, and the response; `said` may repeat the prompt."""
    messages = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
    before, last = messages[:-1], messages[-1:]
    if prompt is None:
        return before, last
    if isinstance(prompt, str):
        asked = {"role": "user", "content": prompt}
        repeated = any(message["role"] == "user" and message.get("content") == prompt
                       for message in before)  # fmt: skip
        return (before, last) if repeated else (_alone([asked], before, name, where), last)
    return (before if before == prompt else _alone(prompt, before, name, where)), last


def _alone(prompt: Messages, before: Messages, name: str, where: LineRef) -> Messages:
    if before:
        raise where.wrong(
            f'"{name}" holds {len(before) + 1} messages; with a "prompt", one is needed, or the '
            "prompt's own messages before it."
        )
    return prompt


def _shared_beginning(chosen: str, rejected: str, where: LineRef) -> tuple[str, str, str]:
    """The prompt that two texts share: up to the last turn of hh-rlhf, or whole words."""
    shared = chosen[: alike(chosen, rejected)]
    turn, word = shared.rfind(TURN), re.search(r"\s+\S*\Z", shared)
    cut = turn + len(TURN) if turn >= 0 else word.start() if word else 0
    if not cut:
        raise where.wrong('"prompt" is missing, and "chosen" and "rejected" do not begin alike.')
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        _check_response(text[cut:], name, where)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def alike(first: Sequence, second: Sequence) -> int:
    """How many entries two sequences share before they differ."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


# --- fields ------------------------------------------------------------------------------------


def _field(record: dict[str, Any], name: str, where: LineRef) -> Any:
    if name not in record:
        has = ", ".join(f'"{key}"' for key in list(record)[:6]) or "nothing"
        raise where.wrong(f'"{name}" is missing; the line has {has}.')
    return record[name]


def _text_or_messages(
    record: dict[str, Any], name: str, where: LineRef, *, ends: bool = False
) -> Text:
    """A field; `ends`: with a response."""
    if isinstance(_field(record, name, where), list):
        return _messages(record, name, where, ends=ends)
    text = _text(record, name, where)
    if ends:
        _check_response(text, name, where)
    return text


def _text(record: dict[str, Any], name: str, where: LineRef) -> str:
    text = _field(record, name, where)
    if not isinstance(text, str):
        raise where.wrong(f'"{name}" is a {kind(text)}; text is needed.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise where.wrong(f'"{name}" holds half of a surrogate pair, which is no text.') from error
    return text


def _messages(record: dict[str, Any], name: str, where: LineRef, *, ends: bool) -> Messages:
    messages = _field(record, name, where)
    if not isinstance(messages, list) or not messages:
        raise where.wrong(f'"{name}" is a {kind(messages)}; a list of messages is needed.')
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise where.wrong(
                f'"{name}" has a {kind(message)} as message {i}; an object is needed.'
            )
        for key in ("role", "content"):
            if key == "content" and message.get(key) is None and message.get("tool_calls"):
                continue  # what it says is the call
            if not isinstance(message.get(key), str):
                raise where.wrong(f'message {i} of "{name}" has no text as "{key}".')
            _text(message, key, where)
    last = messages[-1]
    if ends and last["role"] != "assistant":
        raise where.wrong(
            f'the last message of "{name}" is by {last["role"]!r}; a response by "assistant" is '
            "needed."
        )
    if ends and not last.get("tool_calls"):
        _check_response(last["content"], name, where)
    return messages


def _check_response(text: str, name: str, where: LineRef) -> None:
    if not text.strip():
        raise where.wrong(f'the response in "{name}" is empty.')


def _source(record: dict[str, Any], where: LineRef) -> str | None:
    return _text(record, "source", where) if record.get("source") is not None else None


def _words(record: dict[str, Any], where: LineRef) -> dict[str, Any]:
    """What a line tells the template besides its messages."""
    more = record.get("chat_template_kwargs") or {}
    if not isinstance(more, dict):
        raise where.wrong(f'"chat_template_kwargs" is a {kind(more)}; an object is needed.')
    for name in OURS:
        if name in more:
            raise where.wrong(f'"chat_template_kwargs" sets "{name}", which the messages decide.')
    tools = record.get("tools")
    if isinstance(tools, str):  # as in tables, which cannot hold objects of different keys
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise where.wrong(f'"tools" is text that is not JSON: {error}.') from error
    if not tools:
        return more
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise where.wrong(f'"tools" is a {kind(tools)}; a list of objects is needed.')
    return {**more, "tools": tools}


def _no_words(record: dict[str, Any], where: LineRef) -> dict[str, Any]:
    """Plain text has no template."""
    for name in TEMPLATE:
        if record.get(name):
            raise where.wrong(f'"{name}" is for messages, and this line is plain text.')
    return {}
