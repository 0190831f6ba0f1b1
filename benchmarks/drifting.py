"""Learning from a stream of feedback while what is wanted drifts, on a bandit.

`python -m benchmarks.drifting`. Ten answers whose hidden utilities wander: they revert to 0 at
0.002 a step, with deviation 1 in the long run. Each step one comparison of two answers, in four of
five steps drawn from the policy of that moment, else uniformly. Regret: how far the objective of
the policy, its utility less β KL from the uniform reference, is from its maximum at that moment.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import bilevel as bl
from benchmarks.harness import RESULTS, machine
from bilevel.apps.llm.methods.reward_learning import problem
from bilevel.apps.llm.methods.task import Feedback, Task, Weights, data
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policies.policy import Preferences
from bilevel.apps.llm.policy_steps.exact import Mirror
from bilevel.apps.llm.policy_steps.policy_step import Prompts
from bilevel.methods import TTSA
from bilevel.problem import Batch
from bilevel.updates import AbstractUpdate, as_update

ANSWERS, BETA, EXPLORED, DRIFT = 10, 0.3, 0.2, 0.002
STEPS, EVERY, FROZEN = 4000, 500, 1000
RATE = 0.2  # of the reward and of the policy
SEEDS = 8
POLICY = tiny.bandit(1, ANSWERS)
FILE = RESULTS / "drifting.json"
READING = (
    f"Mean regret over the second half of {STEPS} steps, mean and standard error of {SEEDS} seeds. "
    "Recorded: what the specification of this experiment gives, on other seeds; it leaves open the "
    "scale of the utilities (deviation 1 here) and what a batch is (comparisons since the last)."
)

Utilities = Float[Array, "1 answers"]


def task(preferences: Preferences | None = None) -> Task:
    reference = jnp.zeros((1, ANSWERS))
    return Task(POLICY, reference, BETA, tiny.FreeRewards(POLICY), preferences=preferences,
                prompts=jnp.zeros(1, int))  # fmt: skip


def regret(utilities: Utilities, y: Array) -> Array:
    """Of a policy, by the utilities of the moment."""
    reference, log_p = (POLICY.log_table(z) for z in (jnp.zeros_like(y), y))
    best = tables.optimum(reference, utilities, BETA)
    high, value = (tables.objective(p, reference, utilities, BETA) for p in (best, log_p))
    return high - value


def compared(utilities: Utilities, y: Array, key) -> Preferences:
    """Which of two answers is preferred: a pair from the policy, or a uniform one."""
    exploring, drawing, labelling = jax.random.split(key, 3)
    uniform = jax.random.bernoulli(exploring, EXPLORED)
    log_p = jnp.where(uniform, 0.0, POLICY.log_table(y))[0]
    answers = jax.random.categorical(drawing, log_p, shape=(2, 1))
    a, b = (POLICY.response(jnp.zeros(1, int), one) for one in answers)
    return tiny.label(utilities, POLICY, a, b, labelling)


def wandered(utilities: Utilities, key, drift: float) -> Utilities:
    noise = jax.random.normal(key, utilities.shape)
    return (1 - drift) * utilities + (1 - (1 - drift) ** 2) ** 0.5 * noise


def posed(given: Task, rate: float) -> bl.Problem:
    return problem(given, Mirror(rate), weights=Weights(0.0, 1.0))


# --- ways to follow ----------------------------------------------------------------------------


def single_loop(
    key,
    *,
    drift=DRIFT,
    steps=STEPS,
    frozen: int | None = None,
    update: AbstractUpdate | None = None,
) -> Float[Array, " steps"]:
    """A step of the reward and one of the policy for each comparison; the regret of every step.

    Args:
        frozen: the step from which on the reward rests.
    """
    asked, method = posed(task(), RATE), TTSA(as_update(RATE) if update is None else update)
    start, stream = jax.random.split(key)
    state = method.init(asked, jnp.zeros((1, ANSWERS)), jnp.zeros((1, ANSWERS)))
    utilities = jax.random.normal(start, (1, ANSWERS))

    def one(carry, at):
        (state, utilities), (t, key) = carry, at
        drawing, wandering = jax.random.split(key)
        pair = compared(utilities, state.y, drawing)
        prompts = bl.RepeatedBatch(Prompts(jnp.zeros(1, int), drawing))
        new, _ = method.step(asked, state, Batch(Feedback(preferences=pair), prompts))
        if frozen is not None:
            new = new._replace(x=jnp.where(t < frozen, new.x, state.x))
        utilities = wandered(utilities, wandering, drift)
        return (new, utilities), regret(utilities, new.y)

    at = jnp.arange(steps), jax.random.split(stream, steps)
    return jax.lax.scan(one, (state, utilities), at)[1]


def in_batches(key, *, drift=DRIFT, steps=STEPS, every=EVERY, fit=300) -> Float[Array, " steps"]:
    """The reward fitted, and its best policy taken, after every so many comparisons."""
    start, stream = jax.random.split(key)
    nothing = jnp.zeros((1, ANSWERS))
    method = TTSA(bl.updates.FromOptax(optax.adam, 0.05))

    def collect(carry, key):
        utilities, y = carry
        drawing, wandering = jax.random.split(key)
        pair = compared(utilities, y, drawing)
        utilities = wandered(utilities, wandering, drift)
        return (utilities, y), (pair, regret(utilities, y))

    def batch(carry, keys):
        (utilities, y), (pairs, regrets) = jax.lax.scan(collect, carry, keys)
        seen = task(jax.tree.map(lambda leaf: leaf[:, 0], pairs))
        asked = problem(seen, Mirror(), weights=Weights(0.0, 1.0), decay=1e-3)
        state, _ = bl.run(asked, method, method.init(asked, nothing, y), data=data(seen), steps=fit)
        return (utilities, state.y), regrets

    carry = jax.random.normal(start, (1, ANSWERS)), nothing
    keys = jax.random.split(stream, steps).reshape(steps // every, every)
    return jax.lax.scan(batch, carry, keys)[1].ravel()


class Way(NamedTuple):
    name: str
    follow: Callable
    recorded: float


WAYS = (
    Way("single loop", single_loop, 0.32),
    Way(f"anew every {EVERY} steps", in_batches, 0.87),
    Way("reward frozen after a quarter", lambda key: single_loop(key, frozen=FROZEN), 1.65),
)


class Found(NamedTuple):
    name: str
    regret: list[float]  # over the second half, of every seed
    recorded: float


def found(seeds: int = SEEDS) -> list[Found]:
    keys = jax.random.split(jax.random.key(0), seeds)
    rows = []
    for way in WAYS:
        regrets = np.asarray(jax.jit(jax.vmap(way.follow))(keys))
        second = regrets[:, regrets.shape[1] // 2 :].mean(axis=1)
        rows.append(Found(way.name, second.tolist(), way.recorded))
    return rows


def in_order(rows: list[Found]) -> bool:
    """Single loop < 0.6 · batches < frozen."""
    single, batches, frozen = (float(np.mean(row.regret)) for row in rows)
    return single < 0.6 * batches < batches < frozen


def table(rows: list[Found]) -> str:
    lines = ["| way | regret | recorded |", "|---|---|---|"]
    for row in rows:
        error = np.std(row.regret, ddof=1) / len(row.regret) ** 0.5
        lines.append(f"| {row.name} | {np.mean(row.regret):.2f} ± {error:.2f} | {row.recorded} |")
    return "\n".join(lines)


def kept() -> list[Found]:
    """The rows of the last run."""
    return [Found(**row) for row in json.loads(FILE.read_text())["rows"]]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rows = found()
    print(f"{table(rows)}\n\n{READING}\n")
    print(f"the order is {'as expected' if in_order(rows) else 'not as expected'}")
    lines = [row._replace(regret=[round(r, 4) for r in row.regret])._asdict() for row in rows]
    record = {"machine": machine(), "seeds": SEEDS, "rows": lines}
    FILE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"kept in {FILE}")


if __name__ == "__main__":
    main()
