"""Ways to forget, and the settings that are tried."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from benchmarks.unlearning.learner import Learner
from benchmarks.unlearning.world import World
from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.policies.policy import referred
from bilevel.apps.llm.unlearning import losses, task
from bilevel.apps.llm.unlearning.blur import BLUR, WeightedSum
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.schedules import Linear
from bilevel.selection import solve
from bilevel.updates import FromOptax

BATCH, BETA = 8, 0.1  # rows of each kind, of NPO


class Way(NamedTuple):
    """A pair of losses, and what is made of them with a number."""

    forget: Callable[[Learner, PyTree], Callable]  # of the parameters before
    retain: Callable[[Learner, PyTree], Callable]
    combine: Callable[[float, Callable, Callable], Problem]
    setting: float
    swept: tuple[float, ...] = ()


def _npo(learner, before):
    return task.NPO(learner.policy, BETA)


def _ascent(learner, before):
    return task.Ascent(learner.policy)


def _rmu(learner, before):
    layers, length = learner.settings.steered, learner.settings.steering
    target = losses.steering(learner.width, length, jax.random.key(0))
    return task.Steering(learner.policy, layers, target)


def _likelihood(learner, before):
    return task.Likelihood(learner.policy)


def _states(learner, before):
    return task.SameStates(learner.policy, learner.settings.steered, before)


def _alone(_, forget, retain):
    return single(forget)


def _sum(weight, forget, retain):
    """The retain loss has the weight, as in the papers."""
    return WeightedSum(1 / weight).problem(forget, retain)


def _blur(gamma, forget, retain):
    return BLUR(gamma).problem(forget, retain)


WAYS = {
    "GA": Way(_ascent, _likelihood, _alone, 0.0),
    "GradDiff": Way(_ascent, _likelihood, _sum, 1.0),
    "NPO": Way(_npo, _likelihood, _alone, 0.0),
    "NPO + retain": Way(_npo, _likelihood, _sum, 1.0, (0.1, 0.3, 1.0, 3.0, 10.0)),
    "RMU": Way(_rmu, _states, _sum, 1.0),
    "BLUR-NPO": Way(_npo, _likelihood, _blur, 1.0, (0.03, 0.1, 0.3, 1.0, 3.0)),
}


def forgotten(
    way: Way, setting: float, learner: Learner, world: World, before: PyTree, steps: int
) -> tuple[PyTree, float]:
    """The parameters after, and seconds of the processor with compilation."""
    start = time.process_time()
    longest, rate = learner.settings.longest, learner.settings.forgetting_rate
    retain = [row for row in world.retain if len(row.prompt) + len(row.response) <= longest]
    forget = referred(learner.policy, before, learner.arrays(world.forget), rows=BATCH)
    answers = task.Answers(forget, learner.arrays(retain))
    found = solve(
        way.combine(setting, way.forget(learner, before), way.retain(learner, before)),
        TTSA(FromOptax(optax.adamw, Linear(rate, -rate / steps), weight_decay=0.01)),
        before,
        jnp.zeros(()),
        data=task.data(answers, BATCH),
        steps=steps,
        log_every=steps,
        certify=False,
        progress=False,
    )
    return found.x, time.process_time() - start
