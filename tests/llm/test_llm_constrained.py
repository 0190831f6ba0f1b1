"""Two rewards held at their points by multipliers, on policies that can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.optimize import fsolve

import bilevel as bl
from bilevel.apps.llm.methods import constrained
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policy_steps.exact import ExactGradient, Mirror
from bilevel.apps.llm.policy_steps.policy_step import Goal, LowerStep, Prompts
from bilevel.apps.llm.policy_steps.ppo import Critic
from bilevel.apps.llm.policy_steps.value_heads import ValueHeads
from bilevel.apps.llm.rewards.mixed import Mixed
from bilevel.updates import FromOptax

S, A, BETA = 2, 6, 0.5
POLICY = tiny.bandit(S, A)
REFERENCE, *TABLES = np.random.default_rng(0).normal(size=(3, S, A))
TASK = Task(POLICY, jnp.asarray(REFERENCE), BETA, prompts=jnp.arange(S))
QUIET = {"log_every": 2000, "certify": False, "progress": False}


def _scores(policy, table, responses):
    return table[responses.prompts, policy.number(responses)]


def mixed(policy, tables_, squash):
    return Mixed(tuple(Partial(_scores, policy, jnp.asarray(t)) for t in tables_), squash)


def reached(factors) -> np.ndarray:
    """Expected rewards of `π ∝ π_ref exp(Σ_i factor_i r_i / β)`, in NumPy."""
    logits = REFERENCE + sum(f * t for f, t in zip(factors, TABLES, strict=True)) / BETA
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.array([(p * t).sum(axis=1).mean() for t in TABLES])


def multipliers(factors) -> np.ndarray:
    """μ of `factor_i = μ_i / (2 − μ_1 − μ_2)`."""
    return factors * 2 / (1 + factors.sum())


def solved(points, squash, steps=2000):
    rewards = mixed(POLICY, TABLES, squash)
    posed = constrained.problem(TASK, rewards, jnp.asarray(points), Mirror())
    found = bl.solve(
        posed,
        bl.methods.TTSA(0.5),
        jnp.zeros(2),
        TASK.reference,
        data=constrained.data(TASK),
        steps=steps,
        **QUIET,
    )
    return np.asarray(rewards.multipliers(found.x)), found.y


@pytest.mark.slow(unless=lambda squash: squash is jnp.tanh)
@pytest.mark.parametrize("squash", [jnp.tanh, jax.nn.sigmoid])
def test_multipliers_are_those_that_hold_both_rewards_at_their_points(squash):
    factors = np.array([0.2, 0.5])
    points = reached(factors)
    assert (points > reached(np.zeros(2))).all()
    found, y = solved(points, squash)
    np.testing.assert_allclose(found, multipliers(factors), atol=1e-6)
    p = np.exp(POLICY.log_table(y))
    held = [(p * table).sum(axis=1).mean() for table in TABLES]
    np.testing.assert_allclose(held, points, atol=1e-6)


@pytest.mark.slow
def test_a_reward_above_its_point_is_pushed_back_by_tanh_and_let_go_by_sigmoid():
    start = reached(np.zeros(2))
    points = np.array([start[0] - 0.2, start[1] + 0.2])
    factors = fsolve(lambda f: reached(f) - points, np.zeros(2), xtol=1e-13)
    assert factors[0] < 0
    found, _ = solved(points, jnp.tanh)
    np.testing.assert_allclose(found, multipliers(factors), atol=1e-6)
    let_go, _ = solved(points, jax.nn.sigmoid)
    assert 0 < let_go[0] < 0.02
    alone = fsolve(lambda f: reached([0, f[0]])[1] - points[1], np.zeros(1))[0]
    assert let_go[1] == pytest.approx(multipliers(np.array([0, alone]))[1], rel=0.05)


@pytest.mark.slow
def test_a_small_language_model_is_held_at_its_points():
    """The enumerated model; the points are those of a policy with known factors."""
    world = tiny.world(0, vocabulary=3, length=3, prompts=2, demonstrations=20, preferences=20)
    second = world.policy.reward_table(
        tiny.pair_rewards, jax.random.normal(jax.random.key(7), (2, 3, 3))
    )
    factors, both = np.array([0.3, 0.4]), [world.rewards, second]
    mix = sum(f * t for f, t in zip(factors, both, strict=True))
    best = tables.optimum(world.log_reference, mix, world.beta)
    points = jnp.stack([tables.expected(best, table) for table in both])
    task = Task(world.policy, world.reference, world.beta, prompts=jnp.arange(2))
    rewards = mixed(world.policy, both, jnp.tanh)
    adam = FromOptax(optax.adam, 1e-2)
    posed = constrained.problem(task, rewards, points, ExactGradient(adam, 3))
    found = bl.solve(posed, bl.methods.TTSA(0.1), jnp.zeros(2), task.reference,
                     data=constrained.data(task), steps=2000, **QUIET)  # fmt: skip
    held = jnp.stack([tables.expected(world.policy.log_table(found.y), t) for t in both])
    np.testing.assert_allclose(held, points, atol=0.02)
    np.testing.assert_allclose(rewards.multipliers(found.x), multipliers(factors), atol=0.05)
    assert tables.kl(world.policy.log_table(found.y), best) < 0.01


def _table_values(params, responses):
    return params[responses.prompts][:, None]


@pytest.mark.slow
def test_value_heads_end_at_the_maximiser_of_the_mixed_reward():
    rewards, x = mixed(POLICY, TABLES, jnp.tanh), jnp.array([0.3, 0.5])
    adam = FromOptax(optax.adam, 0.03)
    step = ValueHeads(
        Critic(_table_values, jnp.zeros((S, 3))), adam, adam, samples=16, epochs=2, whiten=False
    )
    goal = Goal(POLICY, rewards, TASK.reference, BETA)
    lower, prompts = LowerStep(goal, step), jnp.arange(S)

    @jax.jit
    def run(keys):
        def one(carry, key):
            y, memory = carry
            return lower(x, y, memory, Prompts(prompts, key)), None

        return jax.lax.scan(one, (TASK.reference, lower.init(x, TASK.reference)), keys)[0]

    y, state = run(jax.random.split(jax.random.key(0), 1500))
    mix = POLICY.reward_table(rewards, x)
    best = tables.optimum(POLICY.log_table(TASK.reference), mix, BETA)
    assert tables.kl(POLICY.log_table(TASK.reference), best) > 0.1
    assert tables.kl(POLICY.log_table(y), best) < 0.02
    p = np.exp(POLICY.log_table(y))  # a head knows the value of its own reward
    for i, table in enumerate(TABLES):
        np.testing.assert_allclose(state.own.critic[:, i], (p * table).sum(axis=1), atol=0.2)


def test_a_wrong_use_is_refused():
    rewards = mixed(POLICY, TABLES, jnp.tanh)
    with pytest.raises(ValueError, match="there are 2 rewards; give a point for each"):
        constrained.problem(TASK, rewards, jnp.zeros(3), Mirror())
    step = ValueHeads(Critic(_table_values, jnp.zeros((S, 3))))
    goal = Goal(POLICY, tiny.FreeRewards(POLICY), TASK.reference, BETA)
    with pytest.raises(TypeError, match=r"give rewards\.mixed\.Mixed, or take"):
        step.init(goal, None, TASK.reference)


def test_the_simplex_search_finds_the_best_points():
    found, score = constrained.search_points(
        lambda t: -float(((t - np.array([0.3, 0.7])) ** 2).sum()), np.array([0.1, 0.1]),
        size=0.2, iterations=60,
    )  # fmt: skip
    np.testing.assert_allclose(found, [0.3, 0.7], atol=1e-3)
    assert score == pytest.approx(0, abs=1e-6)
