"""Other upper losses above a policy, each against a known or independent answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

import bilevel as bl
from bilevel.apps.rl import (
    actor_critic,
    alignment,
    constraints,
    grid,
    mdp,
    preferences,
    programs,
    response,
)
from bilevel.updates import FromOptax

DRAW = np.random.default_rng(0)


def fit(problem, x, y, steps, update, data=None):
    method = bl.methods.TTSA(x_update=update)
    key = jax.random.key(0)
    return bl.run(problem, method, method.init(problem, x, y), data=data, steps=steps, key=key)


def slopes(value, x, step=1e-5):
    moves = step * np.eye(x.size).reshape(-1, *x.shape)
    each = [(value(x + move) - value(x - move)) / (2 * step) for move in moves]
    return np.array(each).reshape(x.shape)


@pytest.mark.slow
def test_direct_and_adjoint_hypergradients_are_the_slope():
    bed = mdp.random_mdp(2, 8, 3)
    features = jnp.asarray(DRAW.normal(size=(8, 3, 4)))
    weights = jnp.asarray(DRAW.normal(size=(8, 3)))

    def reward(x):
        return jnp.tanh(features @ x)

    def loss(x, policy):
        return jnp.sum(weights * policy**2) + x @ x

    @jax.jit
    def value(x):
        return loss(x, mdp.solve(bed, reward(x)).policy)

    x = jnp.asarray(DRAW.normal(size=4))
    policy = mdp.solve(bed, reward(x)).policy
    adjoint = response.adjoint(bed, reward, loss, x, policy)
    np.testing.assert_allclose(adjoint, slopes(value, x), rtol=1e-7, atol=1e-8)
    direct = response.direct(bed, reward, loss, x, policy)
    np.testing.assert_allclose(direct, adjoint, atol=1e-13)
    found = response.problem(bed, reward, loss).hypergradient(x, mdp.solve(bed, reward(x)).q, None)
    np.testing.assert_allclose(found, adjoint, atol=1e-12)


@pytest.mark.slow
def test_an_actor_above_a_critic_comes_close_to_the_best_policy():
    bed = mdp.random_mdp(0, 10, 4)
    reward = jnp.asarray(np.random.default_rng(100).uniform(size=(10, 4)))
    best, gaps = actor_critic.best_value(bed, reward), []
    for steps in (1000, 4000, 16000):
        problem = actor_critic.problem(bed, reward, beta=0.5 * steps**-0.5)
        data = actor_critic.transitions(bed, 20)
        update = actor_critic.Mirror(5 * steps**-0.75)
        state, _ = fit(problem, jnp.full((10, 4), 0.25), jnp.zeros((10, 4)), steps, update, data)
        gaps.append(float(1 - actor_critic.value(bed, reward, state.x) / best))
    assert np.all(np.array(gaps) < [0.0123, 0.0080, 0.0040])
    assert np.all(np.divide(gaps[1:], gaps[:-1]) < 4**-0.25)


def test_a_mirror_step_is_that_of_entropy():
    p, d = jnp.array([[0.2, 0.8], [0.5, 0.5]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    moved, _ = actor_critic.Mirror(0.5).step(d, None, p, 0)
    expected = np.asarray(p) * np.exp(-0.5 * np.asarray(d))
    np.testing.assert_allclose(moved, expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)


def bandit():
    features = jnp.asarray(DRAW.normal(size=(10, 3)))
    true = DRAW.normal(size=10)
    labels = jnp.asarray(1 / (1 + np.exp(true[None] - true[:, None])))
    return features, labels


def test_preferences_count_that_the_policy_draws_the_pairs():
    features, labels = bandit()
    problem = preferences.problem(lambda x: features @ x, labels, 0.7)

    @jax.jit
    def value(x):
        return problem.upper(x, problem.lower_step(x, None, None), None)

    x = jnp.array([0.3, -0.2, 0.5])
    y = problem.lower_step(x, None, None)
    full = problem.hypergradient(x, y, None)
    np.testing.assert_allclose(full, jax.grad(value)(x), atol=1e-14)
    np.testing.assert_allclose(full, slopes(value, x), rtol=1e-7, atol=1e-9)
    plain = preferences.problem(lambda x: features @ x, labels, 0.7, score=False)
    part = plain.hypergradient(x, y, None)
    assert jnp.linalg.norm(full - part) > 0.05 * jnp.linalg.norm(full)
    ends = [fit(one, jnp.zeros(3), jnp.zeros(10), 3000, 0.3)[0].x for one in (problem, plain)]
    assert value(ends[0]) < value(ends[1]) - 1e-4


def test_the_multiplier_of_a_constraint_is_the_root():
    reference = jnp.asarray(DRAW.dirichlet(np.ones(8)))
    reward, other = jnp.asarray(DRAW.normal(size=(2, 8)))
    other = other + 0.3 * reward

    def policy(multiplier):
        each = np.asarray(reference) * np.exp((np.asarray(reward) - multiplier * other) / 0.5)
        return each / each.sum()

    limit = float(policy(0) @ other) - 0.1  # so that it binds
    root = brentq(lambda m: policy(m) @ np.asarray(other) - limit, 0, 50, xtol=1e-14)
    problem = constraints.problem(reference, reward, other[None], jnp.array([limit]), 0.5)
    state, _ = fit(problem, jnp.zeros(1), jnp.zeros(8), 2000, 0.5)
    assert state.x[0] == pytest.approx(root, abs=1e-10)
    assert jnp.exp(state.y) @ other == pytest.approx(limit, abs=1e-10)
    idle = constraints.problem(reference, reward, other[None], jnp.array([limit + 1]), 0.5)
    assert fit(idle, jnp.ones(1), jnp.zeros(8), 2000, 0.5)[0].x[0] == 0


def maze():
    """Five by five, from a corner to the opposite one, which ends the way."""
    world = grid.grid(np.zeros((5, 5), bool), start=0, discount=0.95, temperature=0.02)
    bed = grid.ending(world.mdp, 24)
    primary = jnp.where(jnp.arange(25)[:, None] == 24, 0.0, bed.kernel[:, :, 24])
    return world, bed, primary


@pytest.mark.slow
@pytest.mark.parametrize("heuristic", ["helpful", "loops", "adversarial"])
def test_rewards_are_mixed_so_that_the_goal_is_reached(heuristic):
    world, bed, primary = maze()
    away = jnp.asarray(grid.distances(world, 24))
    forth = -0.1 * (bed.kernel @ away - away[:, None])  # a tenth for each move nearer
    auxiliary = {
        "helpful": forth,
        "loops": jnp.zeros((25, 4)).at[0, 1].set(0.2).at[1, 3].set(0.2),
        "adversarial": -forth,
    }[heuristic]
    best = actor_critic.best_value(bed, primary)
    x0 = alignment.start(bed)

    def share(x):
        policy = mdp.solve(bed, alignment.mixed(x, primary, auxiliary)).policy
        return alignment.returned(bed, primary, policy) / best

    assert (share(x0) > 0.95) == (heuristic == "helpful")
    problem = alignment.problem(bed, primary, auxiliary)
    state, _ = fit(problem, x0, jnp.zeros((25, 4)), 2500, FromOptax(optax.adam, 0.02))
    weight = state.x["auxiliary"]

    assert share(state.x) > 0.95
    assert {"helpful": weight > 0, "adversarial": weight <= 0.05}.get(heuristic, True)


@pytest.mark.slow
def test_a_generator_finds_a_reward_program_near_the_best():
    """A key opens the door to the goal; two of six primitives are no use."""
    world = grid.grid(np.zeros((4, 4), bool), discount=0.9, temperature=0.2)
    n, key, goal = 16, 3, 12
    moves = np.asarray(world.mdp.kernel)
    kernel = np.zeros((2, n, 4, 2, n))  # without and with the key
    kernel[0, :, :, 0], kernel[1, :, :, 1] = moves, moves
    kernel[0, :, :, 1, key], kernel[0, :, :, 0, key] = moves[:, :, key], 0
    kernel[1, goal] = 0
    kernel[1, goal, :, 1, goal] = 1
    kernel = jnp.asarray(kernel.reshape(2 * n, 4, 2 * n))
    bed = mdp.MDP(kernel, jnp.zeros(2 * n).at[0].set(1), 0.9, 0.2)
    far = [grid.distances(world, key) + 6, grid.distances(world, goal)]
    potential = jnp.asarray(np.concatenate(far))
    done = jnp.zeros(2 * n).at[n + goal].set(1.0)
    arrives = jnp.where(done[:, None] > 0, 0.0, bed.kernel @ done)
    taken = (bed.kernel[:, :, n:].sum(axis=2)).at[n:].set(0.0)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2 * n, 4)))
    closer = potential[:, None] - bed.kernel @ potential
    cost = -jnp.where(done[:, None] > 0, 0.0, 1.0) * jnp.ones((1, 4))
    tables = jnp.stack([0.3 * closer, taken, arrives, 0.2 * cost, *noise])

    def score(program):
        reward = jnp.einsum("p,psa->sa", program.astype(float) / 2, tables)
        return alignment.returned(bed, arrives, mdp.solve(bed, reward, most=30).policy)

    every = programs.programs(3, 6)
    assert every.shape == (729, 6)
    best = jax.jit(jax.vmap(score))(every).max()
    data = bl.Data(upper=lambda key: key)
    problem = programs.problem(score, group=8, towards=0.01)
    state, _ = fit(problem, jnp.zeros((6, 3)), jnp.zeros(()), 60, 2.0, data)
    found = score(programs.likeliest(state.x))

    assert found > 0.95 * best
    assert score(jnp.ones(6, int)) < 0.8 * best
