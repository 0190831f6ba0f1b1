"""A decoder in the three methods of lm-eval's `LM`."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel.apps.llm.data import batches
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.hub.checkpoint import Checkpoint
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.models import decoder
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies.model import generate
from bilevel.files.needs import needs

STRETCH = 32  # rows are padded to a multiple of it, so that few programs are compiled
NEW = 256  # tokens of an answer whose task names no limit


class Score(NamedTuple):
    """Log-probability of a text, and whether it is the likeliest one, token by token."""

    logprob: float
    greedy: bool


class Scorer(NamedTuple):
    """A model that scores and continues texts, so many at a time."""

    loaded: Checkpoint
    text: Tokenizer
    batch: int

    @property
    def context(self) -> int:
        return self.loaded.config.max_length

    def row(self, before: str, after: str) -> Row:
        """A text and what follows as tokens; the first ones are left out where there is no room."""
        asked, said = self.text.encode_parts(before, after)
        return self.window(self.begun(asked), said)

    def begun(self, ids: list[int]) -> list[int]:
        """With what stands before a text; at least one token.

        Raises:
            ValueError: the text is empty, and the tokenizer has no token to begin with.
        """
        ids = [*self.text.beginning(ids), *ids]
        first = self.text.bos if self.text.bos is not None else self.text.eos
        if not ids and first is None:
            raise ValueError("a text is empty, and the tokenizer has no token to begin with.")
        return ids or [first]  # pyright: ignore[reportReturnType]

    def window(self, before: list[int], said: list[int]) -> Row:
        if len(said) >= self.context:
            raise ValueError(
                f"a text has {len(said)} tokens, and the model reads {self.context}, with one "
                "before it."
            )
        return Row(before[-(self.context - len(said)) :], said, None)

    def rolling(self, text: str) -> list[Row]:
        """A whole text, every token once, after as many earlier ones as there is room for."""
        ids = self.text.encode(text)
        first, size = self.begun([]), self.context - 1
        return [
            self.window([*first, *ids[:at]], ids[at : at + size]) for at in range(0, len(ids), size)
        ]

    def scores(self, rows: Sequence[Row]) -> list[Score]:
        """Of the responses of rows, in their order."""
        found: dict[int, Score] = {}
        config, params = self.loaded.config, self.loaded.params
        for some, few in _batches(rows, self.batch):
            prompt = _up(max(len(row.prompt) for row in few))
            said = _up(max(len(row.response) for row in few))
            padded = batches.padded(few, pad_id=self.text.pad, prompt=prompt, response=said)
            logprobs, likeliest = map(np.asarray, _score(config, params, padded))
            mask = padded.response_mask
            sums = (logprobs * mask).sum(axis=1)
            whole = np.asarray((likeliest | ~mask).all(axis=1))
            each = zip(some, sums, whole, strict=False)
            found |= {i: Score(float(logprob), bool(greedy)) for i, logprob, greedy in each}
        return [found[i] for i in range(len(rows))]

    def continued(self, texts: Sequence[str], new: int, until: Sequence[str]) -> list[str]:
        """The likeliest continuation of each text, token by token, up to one of some texts."""
        room = self.context - new
        if room < 1:
            raise ValueError(f"{new} tokens are asked for, and the model reads {self.context}.")
        rows = [Row(self.begun(self.text.encode(one))[-room:], [0], None) for one in texts]
        drawing, found = Drawing(new=new, temperature=0.0, stop=self.text.stop), {}
        for some, few in _batches(rows, self.batch):
            length = min(_up(max(len(row.prompt) for row in few)), room)
            padded = batches.padded(few, pad_id=self.text.pad, prompt=length)
            drawn = generate(
                self.loaded.config,
                self.loaded.params,
                jnp.asarray(padded.prompts),
                jnp.asarray(padded.prompt_mask),
                key=jax.random.key(0),
                drawing=drawing,
            )
            both = zip(np.asarray(drawn.tokens), np.asarray(drawn.response), strict=True)
            said = (self.text.decode(tokens[mask]) for tokens, mask in both)
            found |= {i: _cut(one, until) for i, one in zip(some, said, strict=False)}
        return [found[i] for i in range(len(rows))]


def language_model(scorer: Scorer) -> Any:
    """An object of lm-eval's class `LM`.

    Raises:
        ImportError: lm-eval is not installed.
    """
    base: Any = needs("lm_eval.api.model", extra="evaluate", what="evaluations").LM

    class Decoder(base):
        tokenizer_name = "bilevel"

        def loglikelihood(self, requests):
            return scorer.scores([scorer.row(*request.args) for request in requests])

        def loglikelihood_rolling(self, requests):
            parts = [scorer.rolling(request.args[0]) for request in requests]
            each = iter(scorer.scores([row for rows in parts for row in rows]))
            return [sum(next(each).logprob for _ in rows) for rows in parts]

        def generate_until(self, requests):
            alike: dict[Any, list[int]] = {}
            for i, request in enumerate(requests):
                alike.setdefault(_how(request.args[1]), []).append(i)
            found = {}
            for (new, until), some in alike.items():
                said = scorer.continued([requests[i].args[0] for i in some], new, until)
                found |= dict(zip(some, said, strict=True))
            return [found[i] for i in range(len(requests))]

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return scorer.text.chat(chat_history, generation=add_generation_prompt)

    return Decoder()


def _how(told: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How many tokens a task asks for, and the texts that end an answer."""
    if told.get("do_sample") and told.get("temperature", 1.0) > 0:
        raise ValueError("a task asks for answers drawn at random; only the likeliest are given.")
    until = told.get("until") or []
    return told.get("max_gen_toks", NEW), (until,) if isinstance(until, str) else tuple(until)


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [at for mark in until if mark and (at := text.find(mark)) >= 0]
    return text[: min(ends, default=None)]


def _batches(rows: Sequence[Row], size: int) -> Iterator[tuple[list[int], list[Row]]]:
    """Numbers and rows of similar lengths; the last batch is filled up with its last row."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].response))
    for at in range(0, len(order), size):
        some = order[at : at + size]
        few = [rows[i] for i in some]
        yield some, few + few[-1:] * (size - len(few))


def _up(length: int) -> int:
    return -(-length // STRETCH) * STRETCH


@eqx.filter_jit
def _score(config, params, padded: batches.Arrays):
    """Log-probabilities of the tokens of responses, and which of them are the likeliest."""
    tokens = jnp.concatenate([padded.prompts, padded.responses], axis=1)
    mask = jnp.concatenate([padded.prompt_mask, padded.response_mask], axis=1).astype(jnp.int32)
    x = decoder.hidden(config, params, tokens, mask, query_start=padded.prompts.shape[1] - 1)

    def pick(scores, tokens):
        chosen = decoder.chosen(scores, tokens)
        likeliest = scores.argmax(axis=-1).astype(tokens.dtype) == tokens
        return chosen - jax.nn.logsumexp(scores, axis=-1), likeliest

    said = jnp.where(padded.response_mask, padded.responses, 0)
    return decoder.over_vocabulary(params, x[:, :-1], pick, said)
