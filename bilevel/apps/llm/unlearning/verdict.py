"""What the report of `bilevel unlearn` says of a model: the numbers of TOFU and of MUSE."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.hub import find
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies.model import Decoder
from bilevel.apps.llm.run.several import Opened
from bilevel.apps.llm.unlearning import judge, metrics
from bilevel.apps.llm.unlearning.settings import Unlearn

FORGET, RETAIN, UNSEEN, CONTINUED = "forget", "retain", "unseen", "forget, continued"
Memory = Mapping[str, judge.Remembered]  # by kind of question


def questions(
    opened: Opened, kinds: Mapping[str, list[Row]], count: int
) -> dict[str, judge.Questions]:
    """Questions of each kind, and the answers to forget again as texts to continue."""
    found = {
        name: judge.questions(rows, opened.responses, count=count) for name, rows in kinds.items()
    }
    halves = [half(row) for row in kinds[FORGET][:count] if len(row.response) > 1]
    longer = opened._replace(rows={**opened.rows, CONTINUED: halves})
    return found | ({CONTINUED: judge.Questions(longer.responses(halves), None)} if halves else {})


def half(row: Row) -> Row:
    """An answer whose first half is given."""
    at = (len(row.response) + 1) // 2
    return row._replace(prompt=row.prompt + row.response[:at], response=row.response[at:])


def memory(
    policy: Decoder, y: PyTree, opened: Opened, asked: Mapping[str, judge.Questions], rows: int
) -> dict[str, judge.Remembered]:
    """Ask a policy everything, so many rows at a time."""
    decode = opened.tokenizer.decode
    return {
        kind: judge.remembered(policy, y, some, decode, rows=rows) for kind, some in asked.items()
    }


def of_retrained(
    asked: Unlearn, opened: Opened, every: Mapping[str, judge.Questions]
) -> dict[str, judge.Remembered] | None:
    """What the model knows that was never told what is to be forgotten; `None` without one.

    Raises:
        ValueError: it reads other tokens.
    """
    if asked.retrained is None:
        return None
    found = find.find(asked.retrained)
    if found.tokenizer.core.to_str() != opened.tokenizer.core.to_str():
        raise ValueError(
            f"{asked.retrained} has another tokenizer than {asked.model}, so that their numbers "
            "cannot be compared. Give a model that was trained from the same one."
        )
    policy = opened.policy
    policy = Decoder(found.config, None, FullFineTune(), policy.drawing, policy.compute)
    params = found.load(dtype=jnp.float32).params
    return memory(policy, params, opened, every, asked.batch)


# --- the numbers -------------------------------------------------------------------------------


def numbers(found: Memory, retrained: Memory | None = None) -> dict[str, float]:
    """All numbers of one model, by name.

    Args:
        retrained: of the model that was never told; without it there is no forget quality, and
            without answers that were never seen no privacy leakage.
    """
    told = {
        f"{kind}: {name}": value
        for kind, one in found.items()
        if kind not in (UNSEEN, CONTINUED)
        for name, value in one.numbers(choice=general(kind)).items()
    }
    if CONTINUED in found:
        verbatim = [one.f for one in found[CONTINUED].rouge]
        told["forget: ROUGE-L of the second half, the first being given"] = sum(verbatim) / len(
            verbatim
        )
    told["model utility"] = utility(found)
    if retrained is None:
        return told
    ours, theirs = found[FORGET].ratio, retrained[FORGET].ratio
    if ours is not None and theirs is not None:
        told["forget quality (p-value)"] = metrics.forget_quality(ours, theirs)
    if UNSEEN in found:
        told["privacy leakage (0 is ideal)"] = metrics.privacy_leakage(
            membership(found), membership(retrained)
        )
    return told


def utility(found: Memory) -> float:
    """The harmonic mean of the numbers on what is to be retained and on what is known generally."""
    kinds = (kind for kind in found if kind == RETAIN or general(kind))
    parts = (found[kind].numbers(choice=general(kind)) for kind in kinds)
    return metrics.utility([[*part.values()] for part in parts])


def membership(found: Memory) -> float:
    """How well Min-40 % tells what is to be forgotten from what was never seen."""
    scores = (metrics.least_likely(found[kind].logprobs, found[kind].mask)
              for kind in (FORGET, UNSEEN))  # fmt: skip
    return metrics.auc(*scores)


def general(kind: str) -> bool:
    return kind not in (FORGET, RETAIN, UNSEEN, CONTINUED)
