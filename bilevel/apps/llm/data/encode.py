"""Demonstrations and preferences to token ids, with the mask of the response."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.apps.llm.data.bad_rows import Findings, LineRef, settled
from bilevel.apps.llm.data.jsonl import Demonstration, Messages, Pair, Text, alike
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
    findings: Findings | None = None,
) -> list[Row]:
    """Demonstrations as tokens.

    Prompt and response are encoded as one text. A response ends at its first stop token: nothing
    that a policy cannot say is learned.

    Args:
        context: tokens that a prompt and its response may have together.
        end: put a stop token where a response has none.
        file: for messages.
        findings: where bad rows are kept; absent, they raise.

    Raises:
        ValueError: a row that is too long, or messages that the template refuses; `end` with a
            tokenizer that has no stop token.
    """
    encoder = _Encoder(tokenizer, context, end)

    def one(row: Demonstration) -> Row:
        where = LineRef(Path(file), row.line)
        (found,) = encoder.rows(row.prompt, [row.response], row.source, row.words, where)
        return found

    with settled(findings, file) as found:
        return found.each(rows, one)


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    *,
    context: int,
    end: bool,
    file: str | Path,
    findings: Findings | None = None,
) -> list[RowPair]:
    """Preferences as tokens; as `encode`. Pairs of equal responses are counted and left out."""
    encoder = _Encoder(tokenizer, context, end)

    def one(pair: Pair) -> RowPair:
        responses, where = [pair.chosen, pair.rejected], LineRef(Path(file), pair.line)
        return RowPair(*encoder.rows(pair.prompt, responses, pair.source, pair.words, where))

    with settled(findings, file) as found:
        both = found.each(pairs, one)
        kept = [pair for pair in both if pair.chosen.response != pair.rejected.response]
        equal = len(both) - len(kept)
        if equal:
            pairs_are = "pairs have" if equal > 1 else "pair has"
            found.notes.append(
                f"{file}: {equal} {pairs_are} two equal responses (after the chat template), and "
                "nothing to prefer; left out."
            )
        return kept


def prompt_ids(prompt: Text, tokenizer: Tokenizer, words: Mapping[str, Any] = {}) -> list[int]:
    """What a policy reads before it answers.

    Plain text begins as the tokenizer's post-processor says, messages as the template does.

    Raises:
        ValueError: there is nothing to read, or the template refuses the messages.
    """
    ids = tokenizer.encode(_prompt_text(prompt, tokenizer, words))
    return _begun(ids, ids, prompt, tokenizer)


class _Encoder(NamedTuple):
    tokenizer: Tokenizer
    context: int
    end: bool

    def rows(
        self,
        prompt: Text,
        responses: Sequence[Text],
        source: str | None,
        words: Mapping[str, Any],
        where: LineRef,
    ) -> list[Row]:
        """One prompt with each of its responses; the ids of the prompt are the same in all."""
        tokenizer = self.tokenizer
        if self.end:
            _check_stop(tokenizer)
        try:
            asked = _prompt_text(prompt, tokenizer, words)
            parts = [
                tokenizer.encode_parts(asked, _response_text(prompt, said, asked, tokenizer, words))
                for said in responses
            ]
            # A token that reaches into one of the responses is no part of the prompt.
            n = min(alike(parts[0][0], ids) for ids, _ in parts)
            found = []
            for before, after in parts:
                ids = before + after
                begun = _begun(ids[:n], ids, prompt, tokenizer)
                found.append(Row(begun, self._ended(ids[n:]), source))
        except ValueError as error:
            raise where.wrong(str(error)) from error
        for row in found:
            self._check_length(row, where)
        return found

    def _ended(self, response: list[int]) -> list[int]:
        """Up to the first stop token, which is appended where none stands."""
        stop, eos = self.tokenizer.stop, self.tokenizer.eos
        at = next((i for i, token in enumerate(response) if token in stop), None)
        if at is not None:
            return response[: at + 1]
        return [*response, eos if eos in stop else stop[0]] if self.end else response

    def _check_length(self, row: Row, where: LineRef) -> None:
        prompt, response = map(len, row[:2])
        advice = "or raise the length where the model allows it."
        if not response:
            raise where.wrong("the tokenizer makes no token of the response.")
        if prompt >= self.context:
            raise where.wrong(
                f"the prompt has {prompt} tokens; with a response it must fit into {self.context}. "
                f"Shorten it, {advice}"
            )
        if prompt + response > self.context:
            raise where.wrong(
                f"prompt and response have {prompt} + {response} tokens, which do not fit into "
                f"{self.context}. Shorten them, {advice}"
            )


def _check_stop(tokenizer: Tokenizer) -> None:
    if not tokenizer.stop:
        raise ValueError(
            "the model names no token that ends a response. Write its number as eos_token_id into "
            "generation_config.json, or its text as eos_token into tokenizer_config.json."
        )


def _begun(ids: list[int], whole: list[int], prompt: Text, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt, with what stands before plain text."""
    if isinstance(prompt, str):
        ids = tokenizer.beginning(whole) + ids
    if ids:
        return ids
    if tokenizer.bos is None:
        raise ValueError("the prompt is empty, and the tokenizer has no token to begin with.")
    return [tokenizer.bos]


def _prompt_text(prompt: Text, tokenizer: Tokenizer, words: Mapping[str, Any]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.chat(prompt, generation=True, **words)


# --- the response of a template ------------------------------------------------------------------

MARK = "bilevelresponse"  # a text that no template changes


def _response_text(
    prompt: Text, response: Text, asked: str, tokenizer: Tokenizer, words: Mapping[str, Any]
) -> str:
    """What the template writes after the prompt: the response and the end of the turn."""
    if isinstance(response, str):
        return response
    if isinstance(prompt, str):
        raise ValueError("the prompt is text and the response messages; both must be of one kind.")
    whole = tokenizer.chat([*prompt, *response], **words)
    found = (
        whole.removeprefix(asked)
        if whole.startswith(asked)
        else _after_opened(prompt, response, asked, tokenizer, words)
    )
    return found.rstrip("\n")


def _after_opened(
    prompt: Messages, response: Messages, asked: str, tokenizer: Tokenizer, words: Mapping[str, Any]
) -> str:
    """The response where the prompt opens more than the template repeats, such as `<think>`."""
    marked = tokenizer.chat([*prompt, response[0] | {"content": MARK}], **words)
    header, found, ending = marked.rpartition(MARK)
    if not found:
        raise ValueError("the chat template does not write what the last message says.")
    opened = asked[alike(header, asked) :].strip()
    said = response[0].get("content") or ""
    if opened and said.lstrip().startswith(opened):
        said = said.lstrip().removeprefix(opened).lstrip("\n")
    return said + ending
