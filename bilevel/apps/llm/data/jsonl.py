"""JSONL files to token arrays: demonstrations and preferences, checked line by line.

A line of demonstrations is one of

    {"prompt": "2 + 2 =", "completion": " 4"}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

and a line of preferences one of

    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    {"chosen": [whole conversation], "rejected": [the same, but for the last message]}

Plain text is taken as it stands; messages go through the chat template. Any line may have a
"source". Files end in .jsonl or are compressed by gzip.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

Text = str | list[dict[str, Any]]  # plain text, or messages


GZIP = b"\x1f\x8b"


class Demonstration(NamedTuple):
    """A prompt and the response to learn; `line` counts from 1."""

    prompt: Text
    response: Text
    source: str | None
    line: int


class Pair(NamedTuple):
    """A prompt and two responses, the better one first."""

    prompt: Text
    chosen: Text
    rejected: Text
    source: str | None
    line: int


def demonstrations(file: str | Path) -> list[Demonstration]:
    """Read demonstrations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not a demonstration; the message tells file, line and why.
    """
    return [_demonstration(record, where) for record, where in _objects(file)]


def preferences(file: str | Path) -> list[Pair]:
    """Read preferences; raises as `demonstrations` does."""
    return [_pair(record, where) for record, where in _objects(file)]


class LineRef(NamedTuple):
    file: Path
    line: int

    def wrong(self, fault: str) -> ValueError:
        return ValueError(f"{self.file}, line {self.line}: {fault}")


def _objects(file: str | Path) -> list[tuple[dict[str, Any], LineRef]]:
    """The object of every line that is not blank."""
    file, found = Path(file), []
    for number, line in enumerate(_lines(file), 1):
        where = LineRef(file, number)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise where.wrong(
                f"byte {error.start + 1} is not UTF-8. Save the file in UTF-8."
            ) from error
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise where.wrong(f"not JSON: {error}. One object a line is needed.") from error
        if not isinstance(record, dict):
            raise where.wrong(f"a JSON {_kind(record)}; an object is needed.")
        found.append((record, where))
    if not found:
        raise ValueError(f"{file} holds no line.")
    return found


def _lines(file: Path) -> list[bytes]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    content = file.read_bytes()
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is compressed by gzip, but damaged: {error}.") from error
    return content.split(b"\n")


def _demonstration(record: dict[str, Any], where: LineRef) -> Demonstration:
    source = _source(record, where)
    if "messages" in record:
        if "prompt" in record or "completion" in record:
            raise where.wrong('both "messages" and "prompt" or "completion"; give one of them.')
        messages = _messages(record, "messages", where)
        return Demonstration(messages[:-1], messages[-1:], source, where.line)
    if "chosen" in record or "rejected" in record:
        raise where.wrong('a preference ("chosen", "rejected") where a demonstration is needed.')
    prompt, response = _text(record, "prompt", where), _text(record, "completion", where)
    _check_response(response, "completion", where)
    return Demonstration(prompt, response, source, where.line)


def _pair(record: dict[str, Any], where: LineRef) -> Pair:
    source = _source(record, where)
    kinds = {name: type(_field(record, name, where)) for name in ("chosen", "rejected")}
    if kinds["chosen"] is not kinds["rejected"]:
        raise where.wrong('"chosen" and "rejected" differ in kind; both text, or both messages.')
    if kinds["chosen"] is not list:
        chosen, rejected = (_text(record, name, where) for name in kinds)
        prompt: Text = (
            _messages(record, "prompt", where, ends=False)
            if isinstance(record.get("prompt"), list)
            else _text(record, "prompt", where)
        )
        if isinstance(prompt, list):
            _check_response(chosen, "chosen", where)
            _check_response(rejected, "rejected", where)
            return _checked(Pair(prompt, _by(chosen), _by(rejected), source, where.line), where)
        return _checked(Pair(prompt, chosen, rejected, source, where.line), where)
    chosen, rejected = (_messages(record, name, where) for name in kinds)
    if "prompt" in record:
        before = _messages(record, "prompt", where, ends=False)
        if len(chosen) != 1 or len(rejected) != 1:
            raise where.wrong('with a "prompt", "chosen" and "rejected" hold one message each.')
    else:
        before = chosen[:-1]
        if before != rejected[:-1]:
            raise where.wrong(
                '"chosen" and "rejected" differ before their last message; they must answer the '
                "same prompt."
            )
        if not before:
            raise where.wrong('"prompt" is missing, and "chosen" holds no message before the last.')
    return _checked(Pair(before, chosen[-1:], rejected[-1:], source, where.line), where)


def _by(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def _checked(pair: Pair, where: LineRef) -> Pair:
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if isinstance(response, str):
            _check_response(response, name, where)
    if pair.chosen == pair.rejected:
        raise where.wrong('"chosen" and "rejected" are the same; there is nothing to prefer.')
    return pair


def _field(record: dict[str, Any], name: str, where: LineRef) -> Any:
    if name not in record:
        has = ", ".join(f'"{key}"' for key in list(record)[:6]) or "nothing"
        raise where.wrong(f'"{name}" is missing; the line has {has}.')
    return record[name]


def _text(record: dict[str, Any], name: str, where: LineRef) -> str:
    text = _field(record, name, where)
    if not isinstance(text, str):
        raise where.wrong(f'"{name}" is a {_kind(text)}; text is needed.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise where.wrong(f'"{name}" holds half of a surrogate pair, which is no text.') from error
    return text


def _messages(
    record: dict[str, Any], name: str, where: LineRef, *, ends: bool = True
) -> list[dict]:
    messages = _field(record, name, where)
    if not isinstance(messages, list) or not messages:
        raise where.wrong(f'"{name}" is a {_kind(messages)}; a list of messages is needed.')
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise where.wrong(
                f'"{name}" has a {_kind(message)} as message {i + 1}; an object is needed.'
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise where.wrong(f'message {i + 1} of "{name}" has no text as "{key}".')
            _text(message, key, where)
    last = messages[-1]
    if ends and last["role"] != "assistant":
        raise where.wrong(
            f'the last message of "{name}" is by {last["role"]!r}; a response by "assistant" is '
            "needed."
        )
    if ends:
        _check_response(last["content"], name, where)
    return messages


def _check_response(text: str, name: str, where: LineRef) -> None:
    if not text.strip():
        raise where.wrong(f'the response in "{name}" is empty.')


def _source(record: dict[str, Any], where: LineRef) -> str | None:
    return _text(record, "source", where) if record.get("source") is not None else None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    if isinstance(value, list) and not value:
        return "list without entries"
    return names.get(type(value), "number")
