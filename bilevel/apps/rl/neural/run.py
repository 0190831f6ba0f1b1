"""`bilevel experts`, and `bilevel irl --env NAME`: the reward behind episodes, with a report."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rich.console import Console

from bilevel import options, report
from bilevel.apps.rl.neural import baselines, demos, irl, pictures, shaped, strips
from bilevel.apps.rl.neural.actions import uniform
from bilevel.apps.rl.neural.environments import Environment, Pendulum
from bilevel.apps.rl.neural.experts import Demos, expert, record
from bilevel.apps.rl.neural.named import make
from bilevel.apps.rl.neural.rewards import Network
from bilevel.apps.rl.neural.rollouts import episodes, returns
from bilevel.apps.rl.settings import IRL, LOWER, Experts
from bilevel.driver import Outcome, Result
from bilevel.files import write_arrays
from bilevel.selection import solve

PLAYED = 32  # episodes that a policy is judged by


class Found(NamedTuple):
    """A reward and its policy, and what policies are worth under the true reward."""

    policy: irl.Policy
    result: Result
    returns: dict[str, float]


def experts(given: Experts) -> None:
    """Write demonstrations, and say what they are worth.

    Raises:
        ValueError, OSError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written but the checkpoint.
    """
    report.check_writable(given.out, "the demonstrations")
    env = make(given.env)
    made, worth = record(env, expert(env), jax.random.key(given.seed), given.episodes)
    random = _played(env, _random(env), jax.random.key(given.seed))
    demos.write(given.out, made, np.asarray(worth))
    Console().print(
        f"{given.episodes} episodes of an expert of {given.env} in {given.out}: mean return "
        f"{float(worth.mean()):.1f}, of random actions {random:.1f}",
        soft_wrap=True,
        highlight=False,
    )


def run(given: IRL) -> bool:
    """Read, learn, show, and write the report.

    Raises:
        ValueError, OSError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written but the checkpoint.
    """
    assert given.env is not None
    out = report.check_writable(given.out)
    if given.save is not None:
        report.check_writable(given.save, "the networks")
    env = make(given.env)
    shown, worth = demos.read(given.demos, env, given.env)
    found = learn(env, shown, given)
    if found.result.status.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    if worth is not None:
        found.returns["the demonstrations"] = float(worth.mean())
    console = Console()
    for name, value in found.returns.items():
        console.print(f"{name:20} {value:8.1f} return{_of_hundred(value, found)}", highlight=False)
    if given.save is not None:
        leaves = {"x": found.result.x, "y": found.result.y}
        named = jax.tree_util.tree_leaves_with_path(leaves)
        write_arrays(given.save, {jax.tree_util.keystr(k): np.asarray(v) for k, v in named})
    title = f"The reward behind {given.demos.name}"
    failed = report.try_write(out, title, lambda: _sections(env, shown, found, given))
    console.print(failed or f"Report written to {out}", soft_wrap=True, highlight=False)
    return found.result.status.ok


def learn(env: Environment, shown: Demos, given: IRL) -> Found:
    """Maximum likelihood over reward networks, and a policy cloned from the same episodes."""
    numbers = given.numbers()
    reward = Network(len(env.scale), 0 if given.state_only else env.actions)
    policy = irl.follower(
        env,
        reward,
        steps=numbers.steps,
        discount=numbers.discount,
        temperature=numbers.temperature,
        **LOWER.get(given.env or "", {}),
    )
    problem = irl.problem(policy, decay=numbers.decay)
    first, second, third, judge = jax.random.split(jax.random.key(given.seed), 4)
    result = solve(
        problem,
        irl.method(numbers.steps, numbers.step_size),
        reward.start(first),
        policy.start(second),
        data=irl.data(shown, policy),
        steps=numbers.steps,
        key=third,
        log_every=max(1, numbers.steps // 20),
        metrics={"return": Partial(_return, policy, judge)},
        checkpoint=given.checkpoint,
    )
    cloned = jax.jit(baselines.clone)(policy, shown, second)
    told = {
        "inverse RL": float(_return(policy, judge, None, result.y)),
        "behaviour cloning": float(_return(policy, judge, None, cloned)),
        "random actions": _played(env, _random(env), judge),
    }
    return Found(policy, result, told)


def _return(policy: irl.Policy, key, x, y):
    """The mean true return of the policy."""
    return _worth(policy.env, policy.act(y), key)


def _worth(env: Environment, act, key):
    return returns(*episodes(env, act, key, PLAYED)).mean()


def _played(env: Environment, act, key) -> float:
    return float(jax.jit(lambda key: _worth(env, act, key))(key))


def _random(env: Environment) -> Any:
    return lambda key, seen: uniform(env.actions, key)


def _of_hundred(value: float, found: Found) -> str:
    if "the demonstrations" not in found.returns:
        return ""
    zero, all_of_it = (found.returns[name] for name in ("random actions", "the demonstrations"))
    return f", {100 * (value - zero) / (all_of_it - zero):.0f} of 100" if all_of_it != zero else ""


def _sections(env: Environment, shown: Demos, found: Found, given: IRL) -> list[report.Section]:
    numbers = report.Numbers(
        [(f"{v:.1f}{_of_hundred(v, found)}", name) for name, v in found.returns.items()]
    )
    about = (
        f"{len(shown.lengths)} demonstrations, {int(jnp.sum(shown.lengths)):,} actions, in "
        f"{given.env}. The numbers are true returns, the mean of {PLAYED} episodes in which "
        "actions are drawn; 0 of 100 is random actions, 100 the demonstrations."
    )
    over = pictures.plane(env, shown)
    panels = {"learned reward": pictures.reward(found.policy, found.result.x, found.result.y, over)}
    caption = (
        "The mean of the learned reward under its policy; what else is observed stays at rest. It "
        "is known up to potential shaping and a scale, which change no policy."
    )
    if over.true is not None:
        panels["true reward"] = over.true
    if isinstance(env, Pendulum):
        share = shaped.share(found.policy, found.result.x)
        caption += f" Up to those it explains {100 * share:.0f} % of the true one."
    rows = report.Table(("option", "value", "what it is"), options.rows(given.filled()))
    lines = {"return": {k: v for k, v in found.returns.items() if k != "inverse RL"}}
    return [
        report.Section("In short", [numbers, report.Text(about)]),
        report.Section("Reward", [report.Figure(pictures.planes(panels, over), caption)]),
        *_played_once(env, found, given),
        *report.of({"TTSA": found.result}, lines=lines),
        report.Section("Settings", [rows]),
    ]


def _played_once(env: Environment, found: Found, given: IRL) -> list[report.Section]:
    """An episode of the learned policy, where it can be drawn."""
    seen = strips.one_episode(env, found.policy.act(found.result.y), jax.random.key(given.seed))
    strip = strips.strip(env, seen)
    caption = f"An episode of the learned policy, {len(seen) - 1} steps."
    return [] if strip is None else [report.Section("Episode", [report.Figure(strip, caption)])]
