"""Maximum-likelihood IRL on a random MDP whose values, visits and gradients are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.apps.rl import compare, irl, mdp

BED = mdp.random_mdp(0, 12, 4)
DRAW = np.random.default_rng(100)
FEATURES = DRAW.normal(size=(12, 4, 6))
FEATURES = jnp.asarray(FEATURES / np.abs(FEATURES).max())
TRUE = jnp.asarray(DRAW.normal(size=6))
REWARD = irl.linear(FEATURES)
START = jnp.zeros(6), jnp.zeros((12, 4))
solve = jax.jit(mdp.solve)


@pytest.fixture(scope="module")
def expert():
    return solve(BED, REWARD(TRUE))


def log_policy_gradient(x, expert):
    """Of `E[Σ γ^t log π_x]`, by differentiating 800 Bellman backups."""

    def likelihood(x):
        q = jax.lax.scan(
            lambda q, _: (mdp.value_iteration(BED, REWARD(x), q), None), START[1], None, length=800
        )[0]
        return jnp.sum(mdp.occupancy(BED, expert.policy) * jax.nn.log_softmax(q))

    return jax.jit(jax.value_and_grad(likelihood))(x)


def fit(problem, steps, rate, data=None, key=0):
    method = bl.methods.TTSA(x_update=rate)
    state = method.init(problem, *START)
    return bl.run(problem, method, state, data=data, steps=steps, key=jax.random.key(key))


def test_values_are_those_of_value_iteration(expert):
    q = np.zeros((12, 4))
    kernel, reward = np.asarray(BED.kernel), np.asarray(REWARD(TRUE))
    for _ in range(500):
        q = reward + 0.9 * kernel @ np.log(np.exp(q).sum(axis=1))
    np.testing.assert_allclose(expert.q, q, atol=1e-12)
    np.testing.assert_allclose(expert.values, np.log(np.exp(q).sum(axis=1)), atol=1e-12)
    visits = mdp.occupancy(BED, expert.policy)
    assert visits.sum() == pytest.approx(10, abs=1e-12)
    flow = BED.start + 0.9 * jnp.einsum("sa,sat->t", visits, BED.kernel)
    np.testing.assert_allclose(visits.sum(axis=1), flow, atol=1e-13)


def test_both_identities_of_the_likelihood(expert):
    x = jnp.arange(6) / 6
    visits = irl.of_policy(BED, expert.policy)
    problem = irl.problem(BED, REWARD, visits)
    y = solve(BED, REWARD(x)).q
    value, gradient = log_policy_gradient(x, expert)
    assert -problem.upper(x, y, None) == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(-problem.hypergradient(x, y, None), gradient, atol=1e-12)
    implicit = bl.hypergrad.implicit(problem, x, y, bl.Batch(), linear=bl.linear.Dense())
    np.testing.assert_allclose(-implicit.grad, gradient, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("exact", "most"), [(True, 1e-5), (False, 1e-3)])
def test_a_single_loop_finds_the_reward_and_its_policy_keeps_up(expert, exact, most):
    problem = irl.problem(BED, REWARD, irl.of_policy(BED, expert.policy), exact=exact)
    method = bl.methods.TTSA(x_update=0.05)

    @jax.jit
    def run(method, state):
        def body(state, _):
            new, _ = method.step(problem, state, bl.Batch())
            best = mdp.solve(BED, REWARD(state.x)).policy
            behind = jnp.log(mdp.soft_policy(BED, new.y)) - jnp.log(best)
            return new, jnp.max(jnp.abs(behind))

        return jax.lax.scan(body, state, None, length=2000)

    state, behind = run(method, method.init(problem, *START))
    np.testing.assert_allclose(state.x, TRUE, atol=1e-12)
    assert behind[10:].mean() < most  # the first ten hold the way from a policy that knows nothing
    assert behind[-1] < 1e-13


@pytest.mark.slow
def test_the_mean_squared_gradient_halves_when_steps_quadruple(expert):
    problem, data = irl.problem(BED, REWARD), irl.sampled(BED, expert.policy, 8, 60)
    counts = mdp.occupancy(BED, expert.policy)

    @jax.jit
    def squared(method, state, feed, steps):
        def body(i, carry):
            state, total = carry
            visits = mdp.occupancy(BED, mdp.solve(BED, REWARD(state.x)).policy)
            gradient = jnp.einsum("sad,sa->d", FEATURES, visits - counts)
            state, _ = method.step(problem, state, feed.batch(state.k))
            return state, total + jnp.sum(gradient**2)

        return jax.lax.fori_loop(0, steps, body, (state, 0.0))[1] / steps

    means = []
    for steps in (250, 1000, 4000):
        method = bl.methods.TTSA(x_update=steps**-0.5)
        state = method.init(problem, *START)
        feed = data.feed(jax.random.key(1), method.draws(problem))
        means.append(float(squared(method, state, feed, steps)))
    np.testing.assert_allclose(means, [0.111, 0.0535, 0.0277], rtol=0.25)
    np.testing.assert_allclose(np.divide(means[1:], means[:-1]), 0.5, rtol=0.25)


@pytest.mark.slow
def test_fewer_demonstrations_are_needed_than_by_cloning(expert):
    """The mean over eight draws of the demonstrations, at each number of them."""

    def both(key, n):
        demos = mdp.rollouts(BED, expert.policy, key, n, 60)
        visits = irl.of(BED, demos)
        problem = irl.problem(BED, REWARD, visits)
        method = bl.methods.TTSA(x_update=0.1)
        state = method.init(problem, *START)
        state = jax.lax.fori_loop(
            0, 1000, lambda i, state: method.step(problem, state, bl.Batch())[0], state
        )
        ours = mdp.soft_policy(BED, state.y)
        seen = jnp.zeros((12, 4)).at[demos.states[:, :-1], demos.actions].add(1.0)
        cloned = compare.clone(irl.Visits(seen, visits.ends))
        kl = [compare.occupancy_kl(BED, expert.policy, one) for one in (ours, cloned)]
        return jnp.stack(kl)

    for n, most in ((20, 0.011), (100, 0.0017), (1000, 0.0002)):
        keys = jax.random.split(jax.random.key(n), 8)
        ours, cloned = jax.jit(jax.vmap(lambda key, n=n: both(key, n)))(keys).mean(axis=0)
        assert ours < cloned
        assert ours < 2 * most


def test_shaping_leaves_the_policy_and_is_all_that_is_unknown(expert):
    potential = jnp.asarray(DRAW.normal(size=12))
    shaped = REWARD(TRUE) + compare.shaping(BED, potential)
    np.testing.assert_allclose(solve(BED, shaped).policy, expert.policy, atol=1e-14)
    assert compare.distance(BED, shaped, REWARD(TRUE)) < 1e-14
    canonical = jnp.log(expert.policy)
    assert compare.distance(BED, REWARD(TRUE), canonical) < 1e-14
    np.testing.assert_allclose(solve(BED, canonical).values, 0, atol=1e-12)
    rest = REWARD(TRUE) - canonical + compare.shaping(BED, expert.values)
    np.testing.assert_allclose(rest, 0, atol=1e-12)
    assert compare.distance(BED, REWARD(TRUE), REWARD(2 * TRUE)) > 0.01
    small = mdp.random_mdp(1, 8, 3)
    basis = jax.vmap(lambda e: compare.shaping(small, e).ravel())(jnp.eye(8))
    assert np.linalg.matrix_rank(basis) == 8


def test_a_tabular_reward_is_found_up_to_shaping(expert):
    problem = irl.problem(BED, lambda x: x, irl.of_policy(BED, expert.policy))
    method = bl.methods.TTSA(x_update=0.5)
    state, _ = bl.run(problem, method, method.init(problem, START[1], START[1]), steps=3000)
    assert compare.distance(BED, REWARD(TRUE), state.x) < 1e-6
    np.testing.assert_allclose(mdp.soft_policy(BED, state.y), expert.policy, atol=1e-6)


def test_a_learned_reward_serves_under_other_dynamics(expert):
    demos = mdp.rollouts(BED, expert.policy, jax.random.key(3), 100, 60)
    state, _ = fit(irl.problem(BED, REWARD, irl.of(BED, demos)), 1000, 0.1)
    other = mdp.random_mdp(5, 12, 4)
    best = solve(other, REWARD(TRUE))
    found = solve(other, REWARD(state.x)).policy

    def value(policy):
        return float(mdp.total(other, mdp.evaluate(other, REWARD(TRUE), policy)))

    ours, carried, uniform = map(value, (found, expert.policy, jnp.full((12, 4), 0.25)))
    optimum = float(mdp.total(other, best.values))
    assert uniform < carried < ours < optimum
    assert optimum - ours < 0.1 * (optimum - carried)


def test_ends_make_up_for_short_demonstrations(expert):
    """The likelihood's gradient at the truth is zero in the mean, however short the data."""
    demos = mdp.rollouts(BED, expert.policy, jax.random.key(4), 20_000, 3)
    gradient = irl.problem(BED, REWARD, irl.of(BED, demos)).hypergradient(TRUE, expert.q, None)
    assert np.abs(gradient).max() < 0.02
    lengths = jnp.full(20_000, 2)
    short = mdp.Rollouts(demos.states.at[:, 3].set(0), demos.actions.at[:, 2].set(0))
    kept = mdp.Rollouts(demos.states[:, :3], demos.actions[:, :2])
    for one, other in zip(irl.of(BED, short, lengths), irl.of(BED, kept), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.slow
def test_maximum_entropy_irl_matches_features(expert):
    demos = mdp.rollouts(BED, expert.policy, jax.random.key(5), 500, 60)
    counts = jnp.zeros((12, 4)).at[demos.states[:, :-1], demos.actions].add(1 / 500)
    starts = jnp.zeros(12).at[demos.states[:, 0]].add(1 / 500)
    x = compare.maximum_entropy(BED, REWARD, counts, starts, 60, jnp.zeros(6))
    policy = solve(BED, REWARD(x)).policy
    uniform = jnp.full((12, 4), 0.25)
    kl = [compare.occupancy_kl(BED, expert.policy, one) for one in (policy, uniform)]
    assert kl[0] < 0.1 * kl[1]
