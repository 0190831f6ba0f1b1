"""Two rewards that are wrong beyond a point: push both, hold them at their points, find the points.

The enumerated language model (8 prompts, responses of 4 tokens out of 6). Two learned rewards are
right up to 1.5 and turn into their opposite beyond, as rewards do that are exploited. It prints the
expected learned rewards and the true one of the reference, of RLHF on the mean of both, of policies
whose rewards are held at points by multipliers, and of the points that a simplex search finds with
the true reward as its score. Expect RLHF to earn the most learned reward and little that is true.

    python examples/constrained_rlhf.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import bilevel as bl
from bilevel.apps.llm.methods import constrained
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policy_steps.exact import ExactGradient
from bilevel.apps.llm.rewards.mixed import Mixed
from bilevel.updates import FromOptax

TRUSTED, BETA, STEPS, MORE = 1.5, 0.5, 400, 100
LENGTH, VOCABULARY, PROMPTS = 4, 6, 8


def true(learned):
    """As the learned reward, up to a value from which on it turns."""
    return jnp.where(learned <= TRUSTED, learned, 2 * TRUSTED - learned)


def scores(policy, table, responses):
    return table[responses.prompts, policy.number(responses)]


def main():
    network = tiny.PrefixNetwork(VOCABULARY, LENGTH, PROMPTS)
    policy = tiny.Enumerated(network, VOCABULARY, LENGTH, PROMPTS)
    keys = jax.random.split(jax.random.key(0), 3)
    pairs = [jax.random.normal(key, (2, VOCABULARY, VOCABULARY)) for key in keys[1:]]
    learned = [policy.reward_table(tiny.pair_rewards, x) for x in pairs]
    task = Task(policy, network.init(keys[0]), BETA, prompts=jnp.arange(PROMPTS))
    rewards = Mixed(tuple(Partial(scores, policy, table) for table in learned), jnp.tanh)

    @jax.jit
    def judged(y):
        """Expected learned rewards, expected true one, divergence."""
        log_p = policy.log_table(y)
        value = sum(tables.expected(log_p, true(table)) for table in learned)
        each = jnp.stack([tables.expected(log_p, table) for table in learned])
        return each, value, tables.kl(log_p, policy.log_table(task.reference))

    def tell(name, y):
        each, value, divergence = judged(y)
        both = ", ".join(f"{one:.2f}" for one in each)
        print(f"{name:36} learned {both}   true {value:.2f}   KL {divergence:.2f}")

    def held(points, x, y, steps, rate=0.1):
        posed = constrained.problem(
            task, rewards, points, ExactGradient(FromOptax(optax.adam, 1e-2), 3)
        )
        found = bl.solve(
            posed, bl.methods.TTSA(rate), x, y, data=constrained.data(task),
            steps=steps, log_every=steps, certify=False, progress=False,
        )  # fmt: skip
        return found.x, found.y

    tell("reference", task.reference)
    half = jnp.arctanh(jnp.full(2, 0.5))  # both factors are 1/2, and stay there
    _, y = held(jnp.zeros(2), half, task.reference, STEPS, rate=0.0)
    tell("RLHF on the mean", y)
    for point in (0.5, 1.0):
        x, y = held(jnp.full(2, point), jnp.zeros(2), task.reference, STEPS)
        mu = ", ".join(f"{one:.2f}" for one in rewards.multipliers(x))
        tell(f"held at {point:g}, {point:g} (μ {mu})", y)

    now = (jnp.zeros(2), task.reference)

    def score(points: np.ndarray) -> float:
        """The search goes on within one run."""
        nonlocal now
        now = held(jnp.asarray(points), *now, MORE)
        return float(judged(now[1])[1])

    points, _ = constrained.search_points(score, np.array([0.5, 0.5]), size=0.5)
    _, y = held(jnp.asarray(points), *now, STEPS)
    tell(f"held at {points[0]:.2f}, {points[1]:.2f}, which were found", y)


if __name__ == "__main__":
    main()
