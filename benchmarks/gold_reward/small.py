"""The benchmark in small, as `make align-demo` shows it: one seed, settings as they were chosen."""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks.gold_reward.feedback import said, scores, world
from benchmarks.gold_reward.settings import FILE, PAIRS, SEEDS
from benchmarks.gold_reward.ways import BY_NAME, Setting, run
from benchmarks.gold_reward.world import base
from bilevel.apps.llm.policies.policy import generate

WAYS, SHOWN = ("SFT", "DPO", "AIHF"), 10
FORMATS = {"gold": ".3f", "KL": ".1f", "seconds": ".1f"}
READING = (
    "A model of 55 thousand parameters, trained on the plays of Shakespeare, learns to please a "
    "gold reward that no method sees: VADER's sentiment of what it says. Gold: mean of 1200 "
    "drawn responses. Below, what each says to the same prompts, with its sentiment in brackets. "
    "One seed; docs/gold-reward.md has three, and more methods."
)


class Line(NamedTuple):
    name: str
    gold: float
    KL: float
    seconds: float  # of the processor, without compilation


class Story(NamedTuple):
    lines: list[Line]
    samples: list[tuple[str, ...]]  # a prompt, and what each policy says to it, with its score


def story(told: Callable[[str], object] = print) -> Story:
    """Before, after SFT, after DPO and after AIHF, on the same feedback."""
    choices, seed = json.loads(FILE.read_text())["choices"]["sentiment"], SEEDS[0]
    given = world(base(), "sentiment", seed)
    policy, answers = given.base.policy, given.base.sizes.answers
    before = generate(policy, given.base.params, given.prompts, jax.random.key(0))
    gold = float(scores(given.base, given.gold, before).mean())
    lines, policies, sft = [Line("before", gold, 0.0, 0.0)], [given.base.params], None
    for name in WAYS:
        numbers, until = choices[name]
        setting = Setting(*numbers)
        found = run(given, BY_NAME[name], setting, pairs=PAIRS, key=seed, sft=sft, until=until)
        sft = found if name == "SFT" else sft
        last = found.points[-1]
        lines.append(Line(name, last.gold, last.kl, last.seconds))
        policies.append(found.policy)
        told(f"{name}: gold reward {last.gold:.3f}, KL {last.kl:.1f}, {last.seconds:.1f} s")
    few = jax.tree.map(lambda leaf: leaf[: answers * SHOWN : answers], given.prompts)
    columns = [said(given.base, few)]
    for y in policies:
        drawn = generate(policy, y, few, jax.random.key(3))
        each = zip(said(given.base, drawn), scores(given.base, given.gold, drawn), strict=True)
        columns.append([f"{answer} ({true:+.2f})" for answer, true in each])
    return Story(lines, [*zip(*columns, strict=True)])


def table(lines: list[Line]) -> str:
    rows = ["| | gold reward | KL | seconds |", "|---|---|---|---|"]
    rows += [f"| {n} | {gold:.3f} | {kl:.1f} | {seconds:.1f} |" for n, gold, kl, seconds in lines]
    return "\n".join(rows)
