"""The numbers of a model, as they are kept."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import PyTree

from benchmarks.unlearning.learner import Learner
from benchmarks.unlearning.world import World
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.unlearning import judge, metrics, verdict

COUNT, WRONG = 40, 3  # questions of each kind, wrong answers to each
PROMPT, RESPONSE = 48, 64  # tokens; longer rows are not judged by
KINDS = (verdict.FORGET, verdict.RETAIN, "authors", "facts")


def fitting(rows: list[Row]) -> list[Row]:
    return [row for row in rows if len(row.prompt) <= PROMPT and len(row.response) <= RESPONSE]


def questions(learner: Learner, world: World) -> dict[str, judge.Questions]:
    arrays = partial(learner.arrays, prompt=PROMPT, response=RESPONSE)
    found = {
        kind: judge.questions(fitting(getattr(world, kind)), arrays, count=COUNT, wrong=WRONG)
        for kind in KINDS
    }
    unseen = fitting(world.unseen)[:COUNT]
    halves = fitting([verdict.half(row) for row in world.forget])[:COUNT]
    found[verdict.UNSEEN] = judge.Questions(arrays(unseen), None)
    found[verdict.CONTINUED] = judge.Questions(arrays(halves), None)
    return found


def judged(learner: Learner, y: PyTree, asked: dict[str, judge.Questions]) -> dict[str, Any]:
    """The nine numbers, those on the forget set, and what is compared with another model."""
    settings, decode = learner.settings, learner.text.decode
    found = {
        kind: judge.remembered(
            learner.policy, y, some, decode, rows=COUNT,
            drawn=0 if kind == verdict.UNSEEN else settings.drawn,
        )
        for kind, some in asked.items()
    }  # fmt: skip
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
