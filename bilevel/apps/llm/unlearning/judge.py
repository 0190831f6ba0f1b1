"""What a policy remembers of some questions: its losses on right and wrong answers, and its own."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses, by_rows, generate
from bilevel.apps.llm.unlearning import metrics

WRONG = 5  # wrong answers to a question, as many as TOFU has


class Questions(NamedTuple):
    """Questions with the right answer and wrong ones."""

    right: Responses  # n rows
    wrong: Responses | None  # n · k rows, the k wrong answers to a question one after another


class Remembered(NamedTuple):
    """What a policy makes of n questions."""

    logprobs: Float[np.ndarray, "n time"]  # of the right answers
    mask: Bool[np.ndarray, "n time"]
    wrong: Float[np.ndarray, "n k"] | None  # losses of wrong answers
    rouge: list[metrics.Rouge]  # of the likeliest answers, which may be those to fewer questions
    said: list[str]

    @property
    def loss(self) -> Float[np.ndarray, " n"]:
        """Minus the mean log-probability of the tokens of each right answer."""
        return _mean(-self.logprobs, self.mask)

    @property
    def ratio(self) -> Float[np.ndarray, " n"] | None:
        """Truth ratios; `None` without wrong answers."""
        return None if self.wrong is None else metrics.truth_ratio(self.loss, self.wrong)

    def numbers(self, *, choice: bool = False) -> dict[str, float]:
        """Probability, ROUGE-L recall and truth score.

        Args:
            choice: the probability is that of the right answer among all.
        """
        loss, wrong = self.loss, self.wrong
        found = {
            "probability": metrics.probability(loss),
            "ROUGE-L": float(np.mean([one.recall for one in self.rouge])),
        }
        if wrong is None:
            return found
        found |= {"probability": metrics.choice(loss, wrong)} if choice else {}
        return found | {"truth": metrics.truth_score(metrics.truth_ratio(loss, wrong))}


def questions(
    rows: Sequence[Row], arrays: Callable[[list[Row]], Responses], *, count: int, wrong: int = WRONG
) -> Questions:
    """The first rows with wrong answers, which are right ones to the most similar questions.

    Args:
        rows: those that the wrong answers are taken from; the first `count` are judged by.
        arrays: rows of tokens as arrays, all with the same lengths.
        wrong: number of wrong answers; as many as there are, if there are fewer.
    """
    few = list(rows[:count])
    others = [wrong_answers(row, rows, wrong) for row in few]
    k = min(map(len, others))
    said = [row._replace(response=one) for row, some in zip(few, others, strict=True)
            for one in some[:k]]  # fmt: skip
    return Questions(arrays(few), arrays(said) if said else None)


def wrong_answers(row: Row, rows: Iterable[Row], count: int) -> list[list[int]]:
    """Different answers to other questions, of those that share the most tokens with this one."""
    asked = {*row.prompt}
    found: dict[tuple[int, ...], float] = {}
    for other in rows:
        shared = len(asked & {*other.prompt}) / len(asked | {*other.prompt})
        said = tuple(other.response)
        found[said] = max(shared, found.get(said, 0.0))
    found.pop(tuple(row.response), None)
    return [list(said) for said in sorted(found, key=lambda said: -found[said])[:count]]


def remembered(
    policy: model.Decoder,
    y: PyTree,
    asked: Questions,
    decode: Callable[[Iterable[int]], str],
    *,
    rows: int | None = None,
    drawn: int | None = None,
) -> Remembered:
    """Ask a policy.

    Args:
        y: parameters of the policy.
        decode: tokens to text.
        rows: batch size; all rows at once if `None`.
        drawn: answers are drawn to so many questions, the first ones; to all if `None`.
    """
    right, wrong = asked
    n, mask = len(right.mask), np.asarray(right.mask)
    logprobs = np.asarray(_token_logprobs(policy, y, right, rows))
    losses = None
    if wrong is not None:
        of_wrong = -np.asarray(_token_logprobs(policy, y, wrong, rows))
        losses = _mean(of_wrong, np.asarray(wrong.mask)).reshape(n, -1)
    few = jax.tree.map(lambda leaf: leaf[:drawn], right)
    said = _said(policy, y, few.prompts, decode) if drawn != 0 else []
    rouge = [metrics.rouge_l(*two) for two in zip(said, texts(few, decode), strict=True)]
    return Remembered(logprobs, mask, losses, rouge, said)


def _said(policy, y, prompts, decode) -> list[str]:
    """The likeliest answers."""
    return texts(generate(policy, y, prompts, jax.random.key(0), temperature=0.0), decode)


def texts(responses: Responses, decode: Callable[[Iterable[int]], str]) -> list[str]:
    """Responses as text."""
    both = zip(np.asarray(responses.tokens), np.asarray(responses.mask), strict=True)
    return [decode(tokens[mask]) for tokens, mask in both]


@eqx.filter_jit
def _token_logprobs(policy, y, responses, rows):
    return by_rows(lambda few: policy.token_logprobs(y, few), responses, rows)


def _mean(each: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, each, 0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
