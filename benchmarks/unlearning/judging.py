"""The numbers of a model, as they are kept."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from benchmarks.unlearning.world import POLICY, Text, World
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses
from bilevel.apps.llm.unlearning import judge, metrics, verdict

COUNT, WRONG = 40, 3  # questions of each kind, wrong answers to each
PROMPT, RESPONSE = 48, 64  # tokens; longer rows are not judged by
KINDS = (verdict.FORGET, verdict.RETAIN, "authors", "facts")


def fitting(rows: list[Row]) -> list[Row]:
    return [row for row in rows if len(row.prompt) <= PROMPT and len(row.response) <= RESPONSE]


def arrays(rows: list[Row]) -> Responses:
    asked = model.prompt_batch(rows, pad_id=0, length=PROMPT)
    return model.responses(rows, asked, pad_id=0, length=RESPONSE)


def questions(world: World) -> dict[str, judge.Questions]:
    found = {
        kind: judge.questions(fitting(getattr(world, kind)), arrays, count=COUNT, wrong=WRONG)
        for kind in KINDS
    }
    unseen = fitting(world.unseen)[:COUNT]
    halves = fitting([verdict.half(row) for row in world.forget])[:COUNT]
    found[verdict.UNSEEN] = judge.Questions(arrays(unseen), None)
    found[verdict.CONTINUED] = judge.Questions(arrays(halves), None)
    return found


def judged(y: PyTree, asked: dict[str, judge.Questions], text: Text) -> dict[str, Any]:
    """The nine numbers, those on the forget set, and what is compared with another model."""
    found = {kind: judge.remembered(POLICY, y, some, text.decode, rows=COUNT)
             for kind, some in asked.items()}  # fmt: skip
    ratio = found[verdict.FORGET].ratio
    assert ratio is not None
    scores = {kind: metrics.least_likely(found[kind].logprobs, found[kind].mask)
              for kind in (verdict.FORGET, verdict.UNSEEN)}  # fmt: skip
    verbatim = np.mean([one.f for one in found[verdict.CONTINUED].rouge])
    return {
        "numbers": {k: found[k].numbers(choice=k in KINDS[2:]) for k in KINDS},
        "utility": verdict.utility(found),
        "verbatim": float(verbatim),
        "auc": metrics.auc(scores[verdict.FORGET], scores[verdict.UNSEEN]),
        "ratios": ratio.tolist(),
        "said": found[verdict.FORGET].said[:3] + found[verdict.RETAIN].said[:2],
    }
