"""Inverse RL from ten demonstrations beside cloning, maximum-entropy IRL and GAIL.

`python -m benchmarks.inverse_rl [--env CartPole-v1] [--only inverse-RL] [--seeds 5] [--steps 400]`.
Returns are on the scale 0 (random actions) to 100 (the expert): the mean of 32 episodes with drawn
actions for each seed, with a standard error over seeds, which run together by `vmap`. All but
cloning, which needs none, play equally many steps of the environment. Then the dynamics change: the
reward learned by inverse RL is optimised from scratch, and the cloned policy is carried over.

What is kept of other environments and methods stays as it is.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bilevel as bl
from bilevel.apps.rl.neural import baselines, irl
from bilevel.apps.rl.neural.actions import Box, uniform
from bilevel.apps.rl.neural.bodies import BODIES
from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum
from bilevel.apps.rl.neural.experts import Demos, expert, record
from bilevel.apps.rl.neural.named import BUILT_IN, make
from bilevel.apps.rl.neural.rewards import Network, Quadratic
from bilevel.apps.rl.neural.rollouts import Act, episodes, returns
from bilevel.apps.rl.settings import LOWER, NETWORKS, OF_ENV
from bilevel.driver import train
from bilevel.report import mean_and_error
from bilevel.updates import as_update

KEPT = Path(__file__).parent / "results" / "inverse_rl.json"
PLAYED = 32
SHOWN = {"hopper": 1}  # demonstrations; of the others ten
FRESH = 17  # no setting was chosen by a run of these seeds; those were of jax.random.key(0)
CHANGED = {
    "CartPole-v1": ("length 1.5", partial(CartPole, length=1.5)),
    "Pendulum-v1": ("gravity 12", partial(Pendulum, gravity=12.0)),
    "Pendulum-continuous": ("gravity 12", partial(Pendulum, gravity=12.0, actions=Box(1))),
}


class Row(NamedTuple):
    """How well one way to learn from demonstrations did in one environment."""

    env: str
    way: str
    score: str
    scores: list[float]  # of each seed
    steps: int  # of the environment, for one seed
    seconds: float  # of the processor for one seed, with compilation


class Task(NamedTuple):
    name: str
    env: Environment
    act: Act  # of the expert
    demos: Demos
    steps: int
    keys: Any


def policy(task: Task, reward: Any) -> irl.Policy:
    numbers = OF_ENV.get(task.name, NETWORKS)
    return irl.follower(
        task.env,
        reward,
        steps=task.steps,
        discount=numbers.discount,
        temperature=numbers.temperature,
        **LOWER.get(task.name, {}),
    )


def learn(task: Task, reward: Any, adversarial: bool = False) -> tuple[irl.Policy, Any, Any]:
    """The policy, and x and y of each seed."""
    agent = policy(task, reward)
    problem = irl.problem(agent, adversarial=adversarial)
    step_size = OF_ENV.get(task.name, NETWORKS).step_size
    method, data = irl.method(task.steps, step_size), irl.data(task.demos, agent)

    def one(key):
        first, second, third = jax.random.split(key, 3)
        state = method.init(problem, reward.start(first), agent.start(second))
        state, _ = bl.run(problem, method, state, data=data, key=third, steps=task.steps)
        return state.x, state.y

    return agent, *jax.jit(jax.vmap(one))(task.keys)


def score(env: Environment, act: Callable) -> float:
    key = jax.random.key(100)
    worth = jax.jit(lambda key: returns(*episodes(env, act, key, PLAYED)).mean())
    return float(worth(key))


def ends(env: Environment, act: Act) -> tuple[float, float]:
    """The returns of random actions and of the expert."""
    return score(env, lambda key, seen: uniform(env.actions, key)), score(env, act)


def scores(env: Environment, agent: irl.Policy, y: Any, scale: tuple[float, float]) -> list[float]:
    """The returns of the policies of all seeds, from 0 to 100."""
    zero, whole = scale
    worth = jax.vmap(lambda y: returns(*episodes(env, agent.act(y), jax.random.key(100), PLAYED)))
    found = np.asarray(jax.jit(worth)(y).mean(axis=1))
    return [round(float(v), 2) for v in 100 * (found - zero) / (whole - zero)]


def measure(task: Task, only: str | None) -> list[Row]:
    d, env = len(task.env.scale), task.env
    ways = {
        "inverse RL": (Network(d), False),
        "GAIL": (Network(d, env.actions, bounded=False), True),
        "maximum-entropy IRL": (Quadratic(d), False),
    }
    agent = policy(task, Network(d))
    played = task.steps * (agent.copies * agent.length + 8 * env.horizon)
    rows, n = [], len(task.keys)

    def add(way: str, values: list[float], steps: int, begin: float) -> None:
        spent = (time.process_time() - begin) / n
        rows.append(
            Row(task.name, way, str(mean_and_error(np.array(values))), values, steps, spent)
        )
        print(rows[-1], flush=True)

    here = ends(env, task.act)
    if only in (None, "cloning"):
        begin = time.process_time()
        clones = jax.jit(jax.vmap(lambda key: baselines.clone(agent, task.demos, key)))(task.keys)
        add("behaviour cloning", scores(env, agent, clones, here), 0, begin)
        if task.name in CHANGED:
            told, changed, there = elsewhere(task.name)
            add(f"{told}: the clone carried over", scores(changed, agent, clones, there), 0, begin)
    for way, (reward, adversarial) in ways.items():
        if only not in (None, way.replace(" ", "-")):
            continue
        begin = time.process_time()
        agent, x, y = learn(task, reward, adversarial)
        add(way, scores(env, agent, y, here), played, begin)
        if way != "inverse RL" or task.name not in CHANGED:
            continue
        begin = time.process_time()
        told, changed, there = elsewhere(task.name)
        moved = dataclasses.replace(agent, env=changed)
        problem, data = irl.problem(moved), irl.data(task.demos, moved)

        def again(x, key, problem=problem, data=data, moved=moved):
            y0 = moved.start(key)
            return train(
                problem, x, y0, data=data, update=as_update(0.0), steps=task.steps, key=key
            )

        y = jax.jit(jax.vmap(again))(x, task.keys)
        add(
            f"{told}: the learned reward optimised", scores(changed, moved, y, there), played, begin
        )
    return rows


def elsewhere(name: str) -> tuple[str, Environment, tuple[float, float]]:
    """Other dynamics, with the returns of random actions and of an expert there."""
    told, of = CHANGED[name]
    env = of()
    return told, env, ends(env, expert(env))


def table(rows: list[Row]) -> str:
    lines = [
        "| environment | way | score, of 100 | steps of the environment | processor [s] a seed |"
    ]
    lines.append("|---|---|---|---|---|")
    for r in rows:
        lines.append(f"| {r.env} | {r.way} | {r.score} | {r.steps:,} | {r.seconds:.0f} |")
    return "\n".join(lines)


def kept() -> list[Row]:
    return [Row(*one) for one in json.loads(KEPT.read_text("utf-8"))] if KEPT.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", choices=[*BUILT_IN, *BODIES])
    parser.add_argument("--only", help="cloning, inverse-RL, GAIL or maximum-entropy-IRL")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="400, or what `bilevel irl` takes")
    asked = parser.parse_args()
    for name in [asked.env] if asked.env else BUILT_IN:
        env = make(name)
        act = expert(env)
        demos, _ = record(env, act, jax.random.key(7), SHOWN.get(name, 10))
        keys = jax.random.split(jax.random.key(FRESH), asked.seeds)
        steps = asked.steps or OF_ENV.get(name, NETWORKS).steps
        found = measure(Task(name, env, act, demos, steps, keys), asked.only)
        new = {(row.env, row.way) for row in found}
        rows = sorted([row for row in kept() if (row.env, row.way) not in new] + found)
        KEPT.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(kept()))


if __name__ == "__main__":
    main()
