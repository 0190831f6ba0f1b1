"""`bilevel irl`: the reward behind demonstrations, with a report."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from rich.console import Console

from bilevel import methods, options, report
from bilevel.apps.rl import compare, irl, pictures
from bilevel.apps.rl.demos import Demos, read
from bilevel.apps.rl.mdp import Rollouts, Soft, Table, solve
from bilevel.apps.rl.settings import IRL
from bilevel.driver import Outcome, Result
from bilevel.global_search.functions import double_precision
from bilevel.selection import solve as front_door
from bilevel.updates import FromOptax


class Found(NamedTuple):
    """A reward, its policy, and how likely they make the demonstrations."""

    reward: Table
    soft: Soft
    result: Result
    likelihoods: dict[str, float]  # mean log likelihood of an action, held out, by who says it


def run(given: IRL) -> bool:
    """Read, learn, show, and write the report.

    Raises:
        ValueError, OSError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written but the checkpoint.
    """
    if given.env is not None:
        from bilevel.apps.rl.neural.run import run as with_networks

        return with_networks(given)
    out = report.check_writable(given.out)
    if given.save is not None:
        report.check_writable(given.save, "the reward")
    with double_precision():
        numbers = given.numbers()
        demos = read(
            given.demos,
            discount=numbers.discount,
            temperature=numbers.temperature,
            slip=given.slip,
        )
        found = learn(demos, given)
        if found.result.status.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        console = Console()
        for name, value in found.likelihoods.items():
            console.print(f"{name:20} {value:.4f} mean log likelihood", highlight=False)
        if given.save is not None:
            np.savez(given.save, reward=found.reward, policy=found.soft.policy, x=found.result.x)
        title = f"The reward behind {given.demos.name}"
        failed = report.try_write(out, title, lambda: _sections(demos, found, given))
    console.print(failed or f"Report written to {out}", soft_wrap=True, highlight=False)
    return found.result.status.ok


def learn(demos: Demos, given: IRL) -> Found:
    """Maximum likelihood over rewards, on all demonstrations but those held out."""
    mdp, numbers = demos.mdp, given.numbers()
    total = len(demos.lengths)
    kept = max(1, total - int(given.held_out * total))
    train, rest = (_part(demos, rows) for rows in (slice(kept), slice(kept, None)))
    judged = rest if len(rest[1]) else train
    reward, x0 = _class(demos, given.state_only)
    problem = irl.problem(mdp, reward, irl.of(mdp, train[0], train[1]), decay=numbers.decay)
    seen, unseen = (_shares(part, mdp.shape) for part in (train, judged))
    result = front_door(
        problem,
        methods.TTSA(x_update=FromOptax(optax.adam, numbers.step_size)),
        x0,
        jnp.zeros(mdp.shape),
        steps=numbers.steps,
        log_every=max(1, numbers.steps // 50),
        checkpoint=given.checkpoint,
        metrics={
            "log likelihood": Partial(_likelihood, mdp.temperature, seen),
            "held-out log likelihood": Partial(_likelihood, mdp.temperature, unseen),
        },
    )
    learned = reward(result.x)
    soft = solve(mdp, learned)
    counts = seen * int(np.sum(train[1]))
    cloned = compare.clone(irl.Visits(counts, mdp.start))
    told = {
        "inverse RL": soft.policy,
        "behaviour cloning": cloned,
        "uniform": jnp.full(mdp.shape, 1 / mdp.shape[1]),
    }
    if demos.reward is not None:
        told["the true reward"] = solve(mdp, jnp.asarray(demos.reward)).policy
    likelihoods = {name: float(jnp.sum(unseen * jnp.log(p))) for name, p in told.items()}
    return Found(learned, soft, result, likelihoods)


def _part(demos: Demos, rows: slice) -> tuple[Rollouts, Any]:
    states, actions = demos.demos
    return Rollouts(states[rows], actions[rows]), jnp.asarray(demos.lengths[rows])


def _class(demos: Demos, state_only: bool) -> tuple[Any, Any]:
    """The reward as a function of x, and x to begin with."""
    if demos.features is not None:
        return irl.linear(jnp.asarray(demos.features)), jnp.zeros(demos.features.shape[-1])
    states, actions = demos.mdp.shape
    if state_only:
        return Partial(_of_state, jnp.zeros((1, actions))), jnp.zeros(states)
    return Partial(jnp.asarray), jnp.zeros((states, actions))


def _of_state(zeros, x):
    return x[:, None] + zeros


def _shares(part: tuple[Rollouts, Any], shape: tuple[int, int]) -> Table:
    """How often each action was taken in each state, of all actions taken."""
    (states, actions), lengths = part
    read = (jnp.arange(actions.shape[1])[None] < lengths[:, None]).astype(float)
    return jnp.zeros(shape).at[states[:, :-1], actions].add(read / read.sum())


def _likelihood(temperature, shares, x, y):
    return jnp.sum(shares * jax.nn.log_softmax(y / temperature, axis=1))


def _sections(demos: Demos, found: Found, given: IRL) -> list[report.Section]:
    numbers = report.Numbers([(f"{v:.4f}", name) for name, v in found.likelihoods.items()])
    about = (
        f"{len(demos.lengths)} demonstrations, {int(np.sum(demos.lengths)):,} actions. The numbers "
        "are the mean log likelihood of an action in the demonstrations held out; larger is better."
    )
    tables, caption = {"learned reward": np.asarray(found.reward)}, ""
    if demos.reward is not None:
        true = jnp.asarray(demos.reward)
        tables = {
            "learned reward, reshaped": np.asarray(compare.reshaped(demos.mdp, true, found.reward)),
            "true reward": demos.reward,
        }
        apart = float(compare.distance(demos.mdp, true, found.reward))
        caption = f" After the best shaping they differ by {apart:.3g} (root mean square)."
    figure = pictures.heat_maps(tables, np.asarray(found.soft.policy), demos.grid)
    caption = (
        "A reward is known up to potential shaping, which changes no policy. Arrows: the likeliest "
        f"move of the learned policy.{caption}"
    )
    rows = report.Table(("option", "value", "what it is"), options.rows(given.filled()))
    others = {name: v for name, v in found.likelihoods.items() if name != "inverse RL"}
    lines = {"held-out log likelihood": others}
    return [
        report.Section("In short", [numbers, report.Text(about)]),
        report.Section("Reward", [report.Figure(figure, caption)]),
        *report.of({"TTSA": found.result}, lines=lines),
        report.Section("Settings", [rows]),
    ]
