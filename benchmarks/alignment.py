"""Ways to align, on a language model small enough to know the answer.

`python -m benchmarks.alignment`. The model of
`bilevel.apps.llm.policies.enumerated`: 8 prompts, 1296 responses to each, 300 demonstrations of the
optimum, 300 preference pairs of responses of the reference, and an exact objective J, 0 for the
reference and 1 for the optimum.
"""

import json
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import RESULTS, machine
from bilevel.apps.llm.methods.aihf import AIHF, IRL
from bilevel.apps.llm.methods.align import AbstractAlignment, align
from bilevel.apps.llm.methods.direct import AIHFDPO, DPO
from bilevel.apps.llm.methods.rlhf import RLHF, RewardModel
from bilevel.apps.llm.methods.self_play import SPIN
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policy_steps.exact import ExactGradient
from bilevel.apps.llm.rewards import losses
from bilevel.updates import FromOptax

SEEDS = (0, 1, 2)
ROUNDS = 150
STEP = ExactGradient(FromOptax(optax.adam, 3e-3), 5)
X_UPDATE = FromOptax(optax.adam, 0.05)
FIT = FromOptax(optax.adam, 3e-3)
LEARNED = {"x_update": X_UPDATE, "decay": 1e-3}
FILE = RESULTS / "alignment.json"
ORDER = ("AIHF", "IRL, linear contrast", "IRL, logistic contrast", "SFT")  # by J, at least
READING = (
    "J: the true reward less the divergence from the reference, 0 at the reference and 1 at the "
    "optimum. KL: from the optimum to the policy. Mean and standard deviation over seeds "
    f"{', '.join(map(str, SEEDS))}. Recorded: what the specification of these experiments gives, "
    "on other seeds. Rows marked with a star are the best of 12 checkpoints, chosen by J itself, "
    "which favours them; the others are the last iterate. Staged RLHF earns more reward than the "
    "optimum where it pays for it in divergence, so only J ranks. Where SFT comes "
    "first, what it gave is start and reference of the second stage."
)


class Way(NamedTuple):
    """One line: how to align, how long, and what was recorded elsewhere."""

    name: str
    how: AbstractAlignment
    steps: int
    recorded: float | None = None  # J
    best: bool = False  # the best of 12 checkpoints
    after_sft: bool = False  # start, and reference, as SFT left them


WAYS = (
    Way("AIHF", AIHF(STEP, **LEARNED), ROUNDS, 0.977),
    Way("IRL, linear contrast", IRL(STEP, **LEARNED), ROUNDS, 0.972),
    Way(
        "IRL, logistic contrast",
        IRL(STEP, contrast=losses.Logistic(), **LEARNED),
        ROUNDS,
        0.880,
    ),
    Way("SFT", SFT(FIT), 300, 0.778, best=True),
    Way("RLHF", RLHF(STEP, ROUNDS, RewardModel(X_UPDATE, 1e-3)), ROUNDS, 0.566),
    Way(
        "SFT, then RLHF",
        RLHF(STEP, ROUNDS, RewardModel(X_UPDATE, 1e-3)),
        ROUNDS,
        0.648,
        after_sft=True,
    ),
    Way("DPO", DPO(FIT), 300, -0.03, best=True),
    Way("SFT, then DPO", DPO(FIT), 300, 0.45, best=True, after_sft=True),
    Way("AIHF-DPO", AIHFDPO(FIT), 300, 0.831, best=True),
    Way("SPIN, one round", SPIN(FromOptax(optax.adam, 1e-3), 0.1), 60, -0.19),
)


class Found(NamedTuple):
    """One line of the table, a number a seed."""

    name: str
    J: list[float]
    divergence: list[float]
    reward: list[float]
    accuracy: list[float]  # of the reward model, NaN without one
    seconds: list[float]
    recorded: float | None
    best: bool


def measures(world: tiny.World) -> dict[str, Callable]:
    """What is measured of the parameters of a reward and of a policy."""
    return {
        "J": lambda x, y: world.reached(y),
        "divergence": lambda x, y: world.divergence(y),
        "reward": lambda x, y: world.reward_of(y),
    }


def task_of(world: tiny.World) -> Task:
    return Task(
        world.policy,
        world.reference,
        world.beta,
        tiny.pair_rewards,
        world.demonstrations,
        world.preferences,
    )


def one(world: tiny.World, way: Way, sft=None) -> tuple[dict[str, float], object]:
    """The measures of one way, and the policy; the best of 12 checkpoints where it says so."""
    given = task_of(world)
    if way.after_sft:
        given = Task(
            given.policy, sft, given.beta, given.reward, given.demonstrations, given.preferences
        )
    v = world.policy.vocabulary
    start = time.perf_counter()
    found = align(
        given,
        way.how,
        steps=way.steps,
        reward=jnp.zeros((2, v, v)),
        metrics=measures(world),
        log_every=max(1, way.steps // 12) if way.best else way.steps,
        progress=False,
    )
    history = found.history
    # Its start is a checkpoint of no method.
    row = 1 + int(np.argmax(history["J"][1:])) if way.best else -1
    numbers = {name: float(history[name][row]) for name in measures(world)}
    numbers["accuracy"] = float("nan")
    if found.reward is not None:
        numbers["accuracy"] = float(world.accuracy(tiny.pair_rewards, found.reward))
    numbers["seconds"] = time.perf_counter() - start
    return numbers, found.policy


def found(ways=WAYS, seeds=SEEDS, told: Callable[[str], object] = print, **size) -> list[Found]:
    """Every way on every seed."""
    columns: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for seed in seeds:
        world, sft = tiny.world(seed, **size), None
        for way in ways:
            numbers, policy = one(world, way, sft)
            if way.name == "SFT":
                sft = policy if sft is None else sft
            columns[way.name].append(numbers)
            told(f"seed {seed}, {way.name}: J {numbers['J']:.3f}, {numbers['seconds']:.0f} s")

    def column(way: Way, name: str) -> list[float]:
        return [numbers[name] for numbers in columns[way.name]]

    return [
        Found(
            way.name,
            column(way, "J"),
            column(way, "divergence"),
            column(way, "reward"),
            column(way, "accuracy"),
            column(way, "seconds"),
            way.recorded,
            way.best,
        )
        for way in ways
    ]


def mean(row: Found) -> float:
    return float(np.mean(row.J))


def in_order(rows: list[Found]) -> bool:
    """AIHF ≥ IRL linear > IRL logistic > SFT > staged RLHF and DPO, by the mean of J."""
    by_name = {row.name: mean(row) for row in rows}
    aihf, linear, logistic, sft = (by_name[name] for name in ORDER)
    last = max(by_name[name] for name in ("RLHF", "SFT, then RLHF", "DPO", "SFT, then DPO"))
    return aihf >= linear > logistic > sft > last


def table(rows: list[Found]) -> str:
    lines = ["| way | J | recorded | KL | reward | order of pairs |", "|---|---|---|---|---|---|"]
    for row in rows:
        accuracy = np.mean(row.accuracy)
        cells = (
            row.name + " *" * row.best,
            f"{mean(row):.3f} ± {np.std(row.J):.3f}",
            "–" if row.recorded is None else f"{row.recorded:.3f}",
            f"{np.mean(row.divergence):.3f}",
            f"{np.mean(row.reward):.3f}",
            f"{accuracy:.3f}" if np.isfinite(accuracy) else "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(rows: list[Found]) -> None:
    def four(value):
        if isinstance(value, list):
            return [four(v) for v in value]
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return float(f"{value:.4g}") if isinstance(value, float) else value

    kept = [{name: four(value) for name, value in row._asdict().items()} for row in rows]
    record = {"machine": machine(), "seeds": SEEDS, "rows": kept}
    FILE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def kept() -> list[Found]:
    """The rows of the last run."""
    rows = [Found(**row) for row in json.loads(FILE.read_text())["rows"]]
    nothing = float("nan")
    return [
        row._replace(accuracy=[nothing if a is None else a for a in row.accuracy]) for row in rows
    ]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rows = found(told=lambda line: print(line, flush=True))
    print(f"\n{table(rows)}\n\n{READING}\n")
    print(f"the order is {'as expected' if in_order(rows) else 'not as expected'}")
    keep(rows)
    print(f"kept in {FILE}")


if __name__ == "__main__":
    main()
