"""Ways to forget, and the settings that are tried."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from benchmarks.unlearning.world import MODEL, POLICY, World
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.methods.single_level import single
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses, referred
from bilevel.apps.llm.unlearning import losses, task
from bilevel.apps.llm.unlearning.blur import BLUR, WeightedSum
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.schedules import Linear
from bilevel.selection import solve
from bilevel.updates import FromOptax

BATCH, RATE, BETA = 8, 1e-3, 0.1  # rows of each kind, step size of AdamW, of NPO
STEPS = {"forget01": 50, "forget05": 100}
LONGEST = 128  # tokens of a row to retain, which saves padding
STEERED, STEERING = 1, 6.5  # layer, and length of the vector, of RMU


class Way(NamedTuple):
    """A pair of losses, and what is made of them with a number."""

    forget: Callable[[PyTree], Callable]  # of the parameters of the model before
    retain: Callable[[PyTree], Callable]
    combine: Callable[[float, Callable, Callable], Problem]
    setting: float
    swept: tuple[float, ...] = ()


def _npo(before):
    return task.NPO(POLICY, BETA)


def _ascent(before):
    return task.Ascent(POLICY)


def _rmu(before):
    return task.Steering(POLICY, STEERED, losses.steering(MODEL.width, STEERING, jax.random.key(0)))


def _likelihood(before):
    return task.Likelihood(POLICY)


def _states(before):
    return task.SameStates(POLICY, STEERED, before)


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
    way: Way, setting: float, world: World, before: PyTree, steps: int
) -> tuple[PyTree, float]:
    """The model after, and seconds of the processor with compilation."""
    start = time.process_time()
    retain = [row for row in world.retain if len(row.prompt) + len(row.response) <= LONGEST]
    answers = task.Answers(referred(POLICY, before, arrays(world.forget), rows=BATCH),
                           arrays(retain))  # fmt: skip
    found = solve(
        way.combine(setting, way.forget(before), way.retain(before)),
        TTSA(FromOptax(optax.adamw, Linear(RATE, -RATE / steps), weight_decay=0.01)),
        before,
        jnp.zeros(()),
        data=task.data(answers, BATCH),
        steps=steps,
        log_every=steps,
        certify=False,
        progress=False,
    )
    return found.x, time.process_time() - start


def arrays(rows: list[Row]) -> Responses:
    longest = max(len(row.response) for row in rows)
    return model.responses(rows, model.prompt_batch(rows, pad_id=0), pad_id=0, length=longest)
