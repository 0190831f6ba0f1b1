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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bilevel.apps.llm.tokenizer import Tokenizer, pad

Told = str | list[dict[str, Any]]  # plain text, or messages
GZIP = b"\x1f\x8b"


class Demonstration(NamedTuple):
    """A prompt and the response to learn; `line` counts from 1."""

    prompt: Told
    response: Told
    source: str | None
    line: int


class Pair(NamedTuple):
    """A prompt and two responses, the better one first."""

    prompt: Told
    chosen: Told
    rejected: Told
    source: str | None
    line: int


class Row(NamedTuple):
    """A prompt and a response as tokens; the response ends with a stop token where asked for."""

    prompt: list[int]
    response: list[int]
    source: str | None


class RowPair(NamedTuple):
    chosen: Row
    rejected: Row


class Packed(NamedTuple):
    """Sequences in rows of equal length; what `decoder` reads."""

    tokens: np.ndarray  # int32 (batch, time)
    segments: np.ndarray  # int32 (batch, time): 0 at padding, else the number of the sequence
    response: np.ndarray  # bool (batch, time): what is to be learned


# --- reading ---------------------------------------------------------------------------------


def demonstrations(file: str | Path) -> list[Demonstration]:
    """Read demonstrations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not a demonstration; the message tells file, line and why.
    """
    return [_demonstration(told, where) for told, where in _objects(file)]


def preferences(file: str | Path) -> list[Pair]:
    """Read preferences; raises as `demonstrations` does."""
    return [_pair(told, where) for told, where in _objects(file)]


class _Where(NamedTuple):
    file: Path
    line: int

    def wrong(self, told: str) -> ValueError:
        return ValueError(f"{self.file}, line {self.line}: {told}")


def _objects(file: str | Path) -> list[tuple[dict[str, Any], _Where]]:
    """The object of every line that is not blank."""
    file, found = Path(file), []
    for number, line in enumerate(_lines(file), 1):
        where = _Where(file, number)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise where.wrong(
                f"byte {error.start + 1} is not UTF-8. Save the file in UTF-8."
            ) from error
        if not text.strip():
            continue
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise where.wrong(f"not JSON: {error}. One object a line is needed.") from error
        if not isinstance(told, dict):
            raise where.wrong(f"a JSON {_kind(told)}; an object is needed.")
        found.append((told, where))
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


def _demonstration(told: dict[str, Any], where: _Where) -> Demonstration:
    source = _source(told, where)
    if "messages" in told:
        if "prompt" in told or "completion" in told:
            raise where.wrong('both "messages" and "prompt" or "completion"; give one of them.')
        messages = _messages(told, "messages", where)
        return Demonstration(messages[:-1], messages[-1:], source, where.line)
    if "chosen" in told or "rejected" in told:
        raise where.wrong('a preference ("chosen", "rejected") where a demonstration is needed.')
    prompt, response = _text(told, "prompt", where), _text(told, "completion", where)
    _check_said(response, "completion", where)
    return Demonstration(prompt, response, source, where.line)


def _pair(told: dict[str, Any], where: _Where) -> Pair:
    source = _source(told, where)
    kinds = {name: type(_field(told, name, where)) for name in ("chosen", "rejected")}
    if kinds["chosen"] is not kinds["rejected"]:
        raise where.wrong('"chosen" and "rejected" differ in kind; both text, or both messages.')
    if kinds["chosen"] is not list:
        chosen, rejected = (_text(told, name, where) for name in kinds)
        prompt: Told = (
            _messages(told, "prompt", where, ends=False)
            if isinstance(told.get("prompt"), list)
            else _text(told, "prompt", where)
        )
        if isinstance(prompt, list):
            _check_said(chosen, "chosen", where)
            _check_said(rejected, "rejected", where)
            return _checked(Pair(prompt, _by(chosen), _by(rejected), source, where.line), where)
        return _checked(Pair(prompt, chosen, rejected, source, where.line), where)
    chosen, rejected = (_messages(told, name, where) for name in kinds)
    if "prompt" in told:
        before = _messages(told, "prompt", where, ends=False)
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


def _checked(pair: Pair, where: _Where) -> Pair:
    for name, said in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if isinstance(said, str):
            _check_said(said, name, where)
    if pair.chosen == pair.rejected:
        raise where.wrong('"chosen" and "rejected" are the same; there is nothing to prefer.')
    return pair


def _field(told: dict[str, Any], name: str, where: _Where) -> Any:
    if name not in told:
        has = ", ".join(f'"{key}"' for key in list(told)[:6]) or "nothing"
        raise where.wrong(f'"{name}" is missing; the line has {has}.')
    return told[name]


def _text(told: dict[str, Any], name: str, where: _Where) -> str:
    text = _field(told, name, where)
    if not isinstance(text, str):
        raise where.wrong(f'"{name}" is a {_kind(text)}; text is needed.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise where.wrong(f'"{name}" holds half of a surrogate pair, which is no text.') from error
    return text


def _messages(told: dict[str, Any], name: str, where: _Where, *, ends: bool = True) -> list[dict]:
    messages = _field(told, name, where)
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
        _check_said(last["content"], name, where)
    return messages


def _check_said(text: str, name: str, where: _Where) -> None:
    if not text.strip():
        raise where.wrong(f'the response in "{name}" is empty.')


def _source(told: dict[str, Any], where: _Where) -> str | None:
    return _text(told, "source", where) if told.get("source") is not None else None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    if isinstance(value, list) and not value:
        return "list without entries"
    return names.get(type(value), "number")


# --- to tokens -------------------------------------------------------------------------------


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
                 _Where(Path(file), row.line))
        for row in rows
    ]  # fmt: skip


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, context: int, end: bool, file: str | Path
) -> list[RowPair]:
    """Preferences as tokens; as `encode`."""
    found = []
    for pair in pairs:
        settings = pair.source, tokenizer, context, end, _Where(Path(file), pair.line)
        both = (_encoded(pair.prompt, said, *settings) for said in (pair.chosen, pair.rejected))
        found.append(RowPair(*both))
    return found


def prompt_text(prompt: Told, tokenizer: Tokenizer) -> str:
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


# --- to arrays -------------------------------------------------------------------------------


class Arrays(NamedTuple):
    """Prompts padded on the left and responses padded on the right, a row each."""

    prompts: np.ndarray  # int32 (n, longest prompt)
    asked: np.ndarray  # bool, of the prompts
    responses: np.ndarray  # int32 (n, longest response)
    said: np.ndarray  # bool, of the responses


def padded(
    rows: Sequence[Row], *, pad_id: int | None = 0, prompt: int | None = None,
    response: int | None = None
) -> Arrays:  # fmt: skip
    """Rows as arrays.

    Args:
        prompt, response: lengths; those of the longest when absent.
    """
    left = pad([row.prompt for row in rows], pad=pad_id, left=True, length=prompt)
    right = pad([row.response for row in rows], pad=pad_id, length=response)
    return Arrays(*left, *right)


def packed(rows: Sequence[Row], length: int) -> Packed:
    """Sequences side by side in rows of `length`, so that little is padding.

    Each goes into the first row with room for it. Sequences do not see each other.

    Raises:
        ValueError: a sequence is longer than `length`.
    """
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in rows:
        n = _length(row)
        if n > length:
            raise ValueError(f"a sequence has {n} tokens, which do not fit into rows of {length}.")
        place = next((j for j, left in enumerate(room) if left >= n), None)
        if place is None:
            bins, room, place = [*bins, []], [*room, length], len(bins)
        bins[place].append(row)
        room[place] -= n
    found = Packed(
        np.zeros((len(bins), length), np.int32),
        np.zeros((len(bins), length), np.int32),
        np.zeros((len(bins), length), bool),
    )
    for i, together in enumerate(bins):
        at = 0
        for number, row in enumerate(together, 1):
            end = at + _length(row)
            found.tokens[i, at:end] = row.prompt + row.response
            found.segments[i, at:end] = number
            found.response[i, at + len(row.prompt) : end] = True
            at = end
    return found


def _length(row: Row) -> int:
    return len(row.prompt) + len(row.response)


# --- order -----------------------------------------------------------------------------------

T = TypeVar("T", Row, RowPair)


def _source_of(row: Row | RowPair) -> str | None:
    return row.source if isinstance(row, Row) else row.chosen.source


def stratified(rows: Sequence[T], seed: int) -> list[T]:
    """A random order in which every stretch holds each source in proportion.

    The i-th of a source's n rows, shuffled, stands near the share (i + u)/n of the whole.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str | None, list[T]] = {}
    for row in rows:
        groups.setdefault(_source_of(row), []).append(row)
    placed = []
    for group in groups.values():
        shift = rng.random()
        for i, j in enumerate(rng.permutation(len(group))):
            placed.append(((i + shift) / len(group), len(placed), group[j]))
    return [row for _, _, row in sorted(placed, key=lambda one: one[:2])]


def split(rows: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Most of the rows, and a share of every source to judge by; no row is in both."""
    order = stratified(rows, seed)
    n = round(share * len(order))
    return order[n:], order[:n]


class Batches:
    """Batches of `size` rows of tokens, epoch after epoch; every iteration starts anew.

    Each epoch is a new order, and what does not fill its last batch is left out.

    Args:
        length: pack sequences into rows of this length; each in a row of its own when absent.
        seed: decides the order; the same seed gives the same batches.
        epochs: stop after so many; never when absent.

    Raises:
        ValueError: fewer rows than a batch has.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        *,
        length: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ):
        self._rows, self._size, self._seed, self._epochs = rows, size, seed, epochs
        self._length = length
        available = len(self._epoch(0)[0])
        if not 1 <= size <= available:
            raise ValueError(f"a batch of {size} rows cannot be made from {available}.")

    def __iter__(self) -> Iterator[Arrays | Packed]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            whole = self._epoch(epoch)
            for at in range(0, len(whole[0]) - self._size + 1, self._size):
                yield type(whole)(*(leaf[at : at + self._size] for leaf in whole))
            epoch += 1

    def _epoch(self, number: int) -> Arrays | Packed:
        order = stratified(self._rows, self._seed + number)
        return padded(order) if self._length is None else packed(order, self._length)
