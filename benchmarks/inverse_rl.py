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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.apps.rl.neural import baselines, irl
from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.experts import Demos, expert, record
from bilevel.apps.rl.neural.named import BUILT_IN
from bilevel.apps.rl.neural.rewards import Network, Quadratic
from bilevel.apps.rl.neural.rollouts import episodes, returns
from bilevel.apps.rl.neural.soft_q import SoftQ, settling
from bilevel.driver import train
from bilevel.report import mean_and_error
from bilevel.updates import as_update

KEPT = Path(__file__).parent / "results" / "inverse_rl.json"
PLAYED, SHOWN = 32, 10
FRESH = 17  # no setting was chosen by a run of these seeds; those were of jax.random.key(0)
CHANGED = {"CartPole-v1": {"length": 1.5}, "Pendulum-v1": {"gravity": 12.0}}


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
    demos: Demos
    steps: int
    keys: Any


def policy(task: Task, reward: Any) -> SoftQ:
    return SoftQ(task.env, reward, update=settling(task.steps))


def learn(task: Task, reward: Any, adversarial: bool = False) -> tuple[SoftQ, Any, Any]:
    """The policy, and x and y of each seed."""
    agent = policy(task, reward)
    problem = irl.problem(agent, adversarial=adversarial)
    method, data = irl.method(task.steps), irl.data(task.demos, agent)

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


def ends(env: Environment) -> tuple[float, float]:
    """The returns of random actions and of the expert."""
    random = score(env, lambda key, seen: jax.random.randint(key, (), 0, env.actions))
    return random, score(env, expert(env))


def scores(env: Environment, agent: SoftQ, y: Any, scale: tuple[float, float]) -> list[float]:
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
    played = task.steps * (64 * 16 + 8 * env.horizon)
    rows, n = [], len(task.keys)

    def add(way: str, values: list[float], steps: int, begin: float) -> None:
        spent = (time.process_time() - begin) / n
        rows.append(
            Row(task.name, way, str(mean_and_error(np.array(values))), values, steps, spent)
        )
        print(rows[-1], flush=True)

    changed = _changed(env, **{k: jnp.asarray(v) for k, v in CHANGED[task.name].items()})
    told = ", ".join(f"{k} {v:g}" for k, v in CHANGED[task.name].items())
    here, there = ends(env), ends(changed)
    if only in (None, "cloning"):
        begin = time.process_time()
        agent = policy(task, Network(d))
        clones = jax.jit(jax.vmap(lambda key: baselines.clone(agent, task.demos, key)))(task.keys)
        add("behaviour cloning", scores(env, agent, clones, here), 0, begin)
        add(f"{told}: the clone carried over", scores(changed, agent, clones, there), 0, begin)
    for way, (reward, adversarial) in ways.items():
        if only not in (None, way.replace(" ", "-")):
            continue
        begin = time.process_time()
        agent, x, y = learn(task, reward, adversarial)
        add(way, scores(env, agent, y, here), played, begin)
        if way != "inverse RL":
            continue
        begin = time.process_time()
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


def _changed(env: Any, **numbers: Any) -> Environment:
    return dataclasses.replace(env, **numbers)


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
    parser.add_argument("--env", choices=BUILT_IN)
    parser.add_argument("--only", help="cloning, inverse-RL, GAIL or maximum-entropy-IRL")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    for name in [asked.env] if asked.env else BUILT_IN:
        env = BUILT_IN[name]()
        demos, _ = record(env, expert(env), jax.random.key(7), SHOWN)
        keys = jax.random.split(jax.random.key(FRESH), asked.seeds)
        found = measure(Task(name, env, demos, asked.steps, keys), asked.only)
        new = {(row.env, row.way) for row in found}
        rows = sorted([row for row in kept() if (row.env, row.way) not in new] + found)
        KEPT.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(kept()))


if __name__ == "__main__":
    main()
