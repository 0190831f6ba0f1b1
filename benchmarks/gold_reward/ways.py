"""The ways to align, the settings that are tried, and one run of one of them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gold_reward.feedback import BETA, World, scores
from benchmarks.gold_reward.settings import Point
from bilevel import schedules, trees
from bilevel.apps.llm.methods.aihf import AIHF, IRL, Finish
from bilevel.apps.llm.methods.align import AbstractAlignment, align
from bilevel.apps.llm.methods.direct import AIHFDPO, DPO, IPO
from bilevel.apps.llm.methods.rlhf import RLHF, RewardModel
from bilevel.apps.llm.methods.self_play import SPIN, SelfPlayAIHF
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies.policy import generate
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.updates import FromOptax

CHECKPOINTS = 4
SAMPLES = 4  # responses to each prompt of a step
STEPS = 120  # of a run; RLHF makes as many of the reward, then as many of the policy
LOOP, LAST = 60, 20  # steps of IRL and AIHF: in the loop, then on its reward
TRIALS = 6  # settings tried of each method


class Setting(NamedTuple):
    """What is tried. A method reads what it has."""

    rate: float  # of the policy
    reward_rate: float
    beta: float  # of the task; τ of IPO, λ of SPIN and self-play
    decay: float  # of the reward


class Ranges(NamedTuple):
    """Least and greatest value of each."""

    rate: tuple[float, float] = (3e-4, 4e-3)
    reward_rate: tuple[float, float] = (0.02, 0.2)
    beta: tuple[float, float] = (0.1, 1.0)
    decay: tuple[float, float] = (1e-4, 1e-2)


RANGES = Ranges()
JOINT = Ranges(reward_rate=(0.05, 0.5), decay=(3e-5, 3e-3))  # of IRL and AIHF


def trials(ranges: Ranges = RANGES, number: int = TRIALS) -> list[Setting]:
    """The settings that are tried: a Latin hypercube, the same one in all ranges; logarithmic."""
    rng = np.random.default_rng(0)
    at = [(rng.permutation(number) + 0.5) / number for _ in ranges]
    columns = [low * (high / low) ** share for (low, high), share in zip(ranges, at, strict=True)]
    return [Setting(*(float(f"{v:.3g}") for v in row)) for row in zip(*columns, strict=True)]


class Way(NamedTuple):
    """A method.

    After SFT: it is start and reference, as usual where a method knows only preferences.
    """

    name: str
    how: Callable[[Setting], AbstractAlignment]
    after_sft: bool = False
    pairs: bool = True  # reads preferences
    ranges: Ranges = RANGES
    beta: float | None = None  # of the task; that of the setting when absent
    steps: int = STEPS  # of the first phase
    every: int = STEPS // CHECKPOINTS  # steps between checkpoints
    begins: int = 0  # steps before there are checkpoints


def adam(rate: float, steps: int = STEPS) -> FromOptax:
    """Adam, whose step size ends at zero."""
    return FromOptax(optax.adam, schedules.Cosine(rate, steps))


def step_of(rate: float, steps: int = STEPS) -> LeaveOneOut:
    return LeaveOneOut(adam(rate, steps), samples=SAMPLES)


def _joint(s: Setting) -> dict[str, Any]:
    """The single loop, where rewards and β have their natural unit, then steps on its reward."""
    update, finish = adam(s.reward_rate, LOOP), Finish(LAST, s.beta, step_of(s.rate / 2, LAST))
    return {"step": step_of(s.rate, LOOP), "x_update": update, "decay": s.decay, "finish": finish}


def _staged(s: Setting) -> RLHF:
    return RLHF(step_of(s.rate), STEPS, RewardModel(adam(s.reward_rate), decay=s.decay))


FINE = (LOOP, LAST // CHECKPOINTS, LOOP)
WAYS = (
    Way("SFT", lambda s: SFT(adam(s.rate)), pairs=False),
    Way("IRL", lambda s: IRL(**_joint(s)), False, False, JOINT, BETA, *FINE),
    Way("AIHF", lambda s: AIHF(**_joint(s)), False, True, JOINT, BETA, *FINE),
    Way("RLHF", _staged, after_sft=True),
    Way("DPO", lambda s: DPO(adam(s.rate)), after_sft=True),
    Way("AIHF-DPO", lambda s: AIHFDPO(adam(s.rate))),
    Way("IPO", lambda s: IPO(s.beta, update=adam(s.rate)), after_sft=True),
    Way("SPIN", lambda s: SPIN(adam(s.rate), s.beta), after_sft=True, pairs=False),
    Way("self-play AIHF", lambda s: SelfPlayAIHF(adam(s.rate), strength=s.beta),
        after_sft=True),
)  # fmt: skip
BY_NAME = {way.name: way for way in WAYS}


class Reached(NamedTuple):
    points: list[Point]
    policy: Any  # at the last checkpoint
    reward: Any
    scores: np.ndarray  # gold reward of each response at the last checkpoint


@eqx.filter_jit
def _looked(policy, reward, y, base, x, prompts, held, key):
    said = generate(policy, y, prompts, key)
    kl = (policy.logprob(y, said) - policy.logprob(base, said)).mean()

    def worth(rows):
        if x is None:
            return policy.logprob(y, rows) - policy.logprob(base, rows)
        return reward(x, rows)

    return said, kl, worth(held.chosen) > worth(held.rejected)


class Look:
    """Called by the driver at every checkpoint; keeps what the one asked for has."""

    def __init__(
        self, world: World, begins: int, until: int, sft: np.ndarray | None, seconds: float
    ):
        self.world, self.begins, self.until = world, begins, until
        self.sft, self.before = sft, seconds
        self.points: list[Point] = []
        self.stretches: list[int] = []  # before each point
        self.spent: dict[bool, list[float]] = {True: [], False: []}  # whether the policy moved
        self.started = time.process_time()
        found = (scores(world.base, world.gold, side) for side in world.held)
        self.difference = np.subtract(*found)

    def __call__(self, step: int, state: Any, row: Any) -> bool:
        spent = time.process_time() - self.started
        alone = jax.tree.structure(state.y) != jax.tree.structure(self.world.base.params)
        y, x = (state.x, None) if alone else (state.y, state.x)
        moved = jax.tree.structure(y) == jax.tree.structure(self.world.base.params)
        self.spent[moved].append(spent)
        if moved and step > self.begins and len(self.points) < self.until:
            self.look(step, y, x)
        self.started = time.process_time()
        return len(self.points) >= self.until and len(self.spent[True]) > 1  # the first compiles

    def look(self, step, y, x):
        world, differ = self.world, self.difference != 0
        base = world.base
        said, kl, over = _looked(base.policy, base.reward, y, base.params, x, world.prompts,
                                 world.held, jax.random.key(step))  # fmt: skip
        right = np.asarray(over) == (self.difference > 0)
        gold = scores(world.base, world.gold, said)
        won = None if self.sft is None else float((np.sign(gold - self.sft).mean() + 1) / 2)
        self.kept = trees.copy(y), trees.copy(x), gold
        found = (0.0, float(gold.mean()), float(kl), float(right[differ].mean()), won)
        self.points.append(Point(step, *found))
        self.stretches.append(len(self.spent[True]))

    def finished(self) -> list[Point]:
        """The points with seconds; the first stretch of a phase compiles, and counts as others."""
        begun = self.before + len(self.spent[False]) * _usual(self.spent[False])
        each = _usual(self.spent[True])
        return [
            p._replace(seconds=begun + each * n)
            for n, p in zip(self.stretches, self.points, strict=True)
        ]


def _usual(spent: list[float]) -> float:
    return float(np.median(spent[1:] or spent or [0.0]))


def run(
    world: World,
    way: Way,
    setting: Setting,
    *,
    pairs: int,
    key: int = 0,
    sft: Reached | None = None,
    until: int = CHECKPOINTS,
) -> Reached:
    """One run, up to a checkpoint.

    Args:
        pairs: how many preferences it may see.
        sft: what SFT reached on the same feedback.
    """
    base, sizes = world.base, world.base.sizes
    begun = sft if way.after_sft else None
    start = base.params if begun is None else begun.policy
    some = None
    if pairs and way.pairs:
        some = jax.tree.map(lambda leaf: leaf[:pairs], world.preferences)
    beta = jnp.asarray(setting.beta if way.beta is None else way.beta, jnp.float32)
    reference = start if way.after_sft else base.params
    task = Task(base.policy, reference, beta, base.reward, world.demonstrations, some)
    look = Look(world, way.begins, until, None if sft is None else sft.scores,
                0.0 if begun is None else begun.points[-1].seconds)  # fmt: skip
    align(
        task, way.how(setting), steps=way.steps, reward=base.reward_start, policy=start,
        key=jax.random.key(key), batch_size=sizes.batch, prompts=sizes.prompts,
        log_every=way.every, progress=False, callbacks=[look],
    )  # fmt: skip
    return Reached(look.finished(), *look.kept)
