"""The ways to align, each with the settings that are tried, and one run of one of them."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gold_reward import reward as rewards
from benchmarks.gold_reward.settings import Point
from benchmarks.gold_reward.world import BETA, POLICY, World, scores
from bilevel.apps.llm.methods.aihf import AIHF, IRL
from bilevel.apps.llm.methods.align import AbstractAlignment, align
from bilevel.apps.llm.methods.direct import AIHFDPO, DPO, IPO
from bilevel.apps.llm.methods.rlhf import RLHF, RewardModel
from bilevel.apps.llm.methods.self_play import SPIN, SelfPlayAIHF
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies.policy import generate
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.updates import FromOptax

CHECKPOINTS = 6
BATCH, PROMPTS, SAMPLES = 64, 32, 4  # rows of feedback a step; prompts to answer, responses to each
FIT, FOLLOW = 132, 132  # RLHF: steps of the reward, then of the policy
DECAY = 1e-3
adam = partial(FromOptax, optax.adam)


class Setting(NamedTuple):
    rate: float = 1e-3  # of the policy
    reward_rate: float = 0.1
    beta: float = BETA  # of the task; τ of IPO, λ of self-play


class Way(NamedTuple):
    """A method, its steps in one run, and the settings that are tried.

    After SFT: it is start and reference, as usual where a method knows only preferences.
    """

    name: str
    how: Callable[[Setting], AbstractAlignment]
    steps: int
    tried: tuple[Setting, ...]
    after_sft: bool = False
    pairs: bool = True  # reads preferences


def _step(s: Setting) -> LeaveOneOut:
    return LeaveOneOut(adam(s.rate), samples=SAMPLES)


LEARNED = tuple(Setting(*s) for s in ((1e-3, 0.03), (2e-3, 0.05), (2e-3, 0.08)))
DIRECT = tuple(Setting(rate, beta=b) for rate, b in ((5e-4, 0.1), (1e-3, 0.1), (1e-3, 1.0)))
WAYS = (
    Way("SFT", lambda s: SFT(adam(s.rate)), 240,
        tuple(map(Setting, (3e-4, 1e-3, 2e-3))), pairs=False),
    Way("IRL", lambda s: IRL(_step(s), x_update=adam(s.reward_rate), decay=DECAY), 144, LEARNED,
        pairs=False),
    Way("AIHF", lambda s: AIHF(_step(s), x_update=adam(s.reward_rate), decay=DECAY), 144, LEARNED),
    Way("RLHF", lambda s: RLHF(_step(s), FOLLOW, RewardModel(adam(s.reward_rate), decay=1e-2)), FIT,
        tuple(Setting(r, 0.05, b) for r, b in ((1e-3, 1.0), (2e-3, 0.5), (3e-3, 0.2))),
        after_sft=True),
    Way("DPO", lambda s: DPO(adam(s.rate)), 120, DIRECT, after_sft=True),
    Way("AIHF-DPO", lambda s: AIHFDPO(adam(s.rate)), 120, DIRECT),
    Way("IPO", lambda s: IPO(s.beta, update=adam(s.rate)), 120, DIRECT, after_sft=True),
    Way("SPIN", lambda s: SPIN(adam(s.rate), s.beta), 120, DIRECT, after_sft=True, pairs=False),
    Way("self-play AIHF", lambda s: SelfPlayAIHF(adam(s.rate), strength=s.beta), 120, DIRECT,
        after_sft=True),
)  # fmt: skip
BY_NAME = {way.name: way for way in WAYS}


class Reached(NamedTuple):
    points: list[Point]
    policy: Any  # at the last checkpoint
    reward: Any
    scores: np.ndarray  # gold reward of each response at the last checkpoint


@eqx.filter_jit
def _looked(y, base, x, prompts, held, key):
    said = generate(POLICY, y, prompts, key)
    kl = (POLICY.logprob(y, said) - POLICY.logprob(base, said)).mean()

    def worth(rows):
        if x is None:
            return POLICY.logprob(y, rows) - POLICY.logprob(base, rows)
        return rewards.reward(x, rows)

    return said, kl, worth(held.chosen) > worth(held.rejected)


class Look:
    """Called by the driver at every checkpoint."""

    def __init__(self, world: World, until: int, sft: np.ndarray | None, seconds: float):
        self.world, self.until, self.sft, self.before = world, until, sft, seconds
        self.points, self.spent, self.scores = [], [], np.zeros(0)
        self.started = time.process_time()
        found = (scores(world.base, world.gold, side) for side in world.held)
        self.difference = np.subtract(*found)

    def __call__(self, step: int, state: Any, row: Any) -> bool:
        self.spent.append(time.process_time() - self.started)
        alone = jax.tree.structure(state.y) != jax.tree.structure(self.world.base.params)
        y, x = (state.x, None) if alone else (state.y, state.x)
        if jax.tree.structure(y) == jax.tree.structure(self.world.base.params):
            self.look(step, y, x)
        self.started = time.process_time()
        return len(self.points) >= self.until

    def look(self, step, y, x):
        world, differ = self.world, self.difference != 0
        said, kl, over = _looked(y, world.base.params, x, world.prompts, world.held,
                                 jax.random.key(step))  # fmt: skip
        right = np.asarray(over) == (self.difference > 0)
        self.scores = scores(world.base, world.gold, said)
        won = None
        if self.sft is not None:
            won = float((np.sign(self.scores - self.sft).mean() + 1) / 2)
        seconds = float(len(self.spent))  # stretches, until `finished`
        found = (seconds, float(self.scores.mean()), float(kl), float(right[differ].mean()), won)
        self.points.append(Point(step, *found))

    def finished(self) -> list[Point]:
        """The points with seconds; the first stretch, which compiles, counts as the others."""
        each = float(np.median(self.spent[1:] or self.spent))
        return [p._replace(seconds=self.before + each * p.seconds) for p in self.points]


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
    base = world.base.params
    begun = sft if way.after_sft else None
    start = base if begun is None else begun.policy
    some = None
    if pairs and way.pairs:
        some = jax.tree.map(lambda leaf: leaf[:pairs], world.preferences)
    beta = jnp.asarray(setting.beta, jnp.float32)
    reference = start if way.after_sft else base
    task = Task(POLICY, reference, beta, rewards.reward, world.demonstrations, some)
    look = Look(world, until, None if sft is None else sft.scores,
                0.0 if begun is None else begun.points[-1].seconds)  # fmt: skip
    found = align(
        task, way.how(setting), steps=way.steps, reward=rewards.start(), policy=start,
        key=jax.random.key(key), batch_size=BATCH, prompts=PROMPTS,
        log_every=max(1, way.steps // CHECKPOINTS), progress=False, callbacks=[look],
    )  # fmt: skip
    return Reached(look.finished(), found.policy, found.reward, look.scores)
