"""Structural estimation and offline inverse RL, in finite MDPs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.apps.rl import compare, irl, mdp, offline, structural
from bilevel.apps.rl.grid import grid
from bilevel.updates import FromOptax

BUS = structural.replacement(20, discount=0.99)
COSTS = jnp.array([6.0, 3.0])  # to replace, and of the last bin


def test_increments_that_are_no_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"increments .* must be probabilities"):
        structural.replacement(5, (0.5, 0.6))


def test_the_information_is_the_curvature_of_the_likelihood():
    """In the mean over choices, against second differences of exact log probabilities."""
    world, features = BUS
    solve = jax.jit(lambda x: mdp.solve(world, features @ x))
    best = solve(COSTS)
    counts = mdp.occupancy(world, best.policy)

    def likelihood(x):
        return float(jnp.sum(counts * jnp.log(solve(x).policy)))

    step, ways = 1e-3, np.eye(2)
    found = np.array(
        [
            [
                sum(
                    a * b * likelihood(COSTS + step * (a * one + b * other))
                    for a in (1, -1)
                    for b in (1, -1)
                )
                / (4 * step**2)
                for one in ways
            ]
            for other in ways
        ]
    )
    wanted = structural.information(world, features, best.q, counts)
    np.testing.assert_allclose(-found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_costs_are_recovered_within_their_standard_errors():
    world, features = BUS
    best = mdp.solve(world, features @ COSTS)
    records = mdp.rollouts(world, best.policy, jax.random.key(1), 100, 200)
    problem = structural.problem(world, features, records)
    method = bl.methods.TTSA(x_update=0.7)
    start = jnp.zeros(2), jnp.zeros(world.shape)
    result = bl.solve(problem, method, *start, steps=60, progress=False, certify=False)
    assert result.history["hypergrad_norm"][-1] < 1e-9
    errors = structural.standard_errors(world, features, result.y, records)
    assert (np.abs(result.x - COSTS) < 3 * errors).all()
    assert (errors < 0.1 * COSTS).all()


POOL = grid(np.zeros((5, 5), bool), start=0, slip=0.1, discount=0.95, temperature=0.1)
TRUE = jnp.zeros((25, 4)).at[4].set(1.0).at[jnp.array([2, 7])].set(-1.0)


def test_an_ensemble_agrees_where_there_is_data():
    uniform = jnp.full(POOL.mdp.shape, 0.25)
    records = mdp.rollouts(POOL.mdp, uniform, jax.random.key(0), 200, 50)
    found = offline.model(POOL.mdp, records)
    np.testing.assert_allclose(found.mdp.kernel.sum(axis=2), 1)
    assert np.abs(found.mdp.kernel - POOL.mdp.kernel).mean() < 0.01
    seen = mdp.Rollouts(records.states % 5, records.actions)  # only the first row
    partly = offline.model(POOL.mdp, seen).doubt
    assert partly[:5].max() < 0.2 * partly[5:].min()


@pytest.mark.slow
def test_offline_inverse_rl_is_better_than_cloning():
    world, k = POOL.mdp, jax.random.split(jax.random.key(1), 2)
    best = mdp.solve(world, TRUE)
    demos = mdp.rollouts(world, best.policy, k[0], 3, 30)
    mixed = mdp.rollouts(world, mdp.soft_policy(world, best.q / 10), k[1], 5, 30)
    records = mdp.Rollouts(*(jnp.concatenate(both) for both in zip(demos, mixed, strict=True)))
    found = offline.model(world, records)
    reward = lambda x: x[:, None] + jnp.zeros((1, 4))  # noqa: E731
    method = bl.methods.TTSA(x_update=FromOptax(optax.adam, 0.05))

    def worth(policy):
        return float(world.start @ mdp.evaluate(world, TRUE, policy, entropy=False))

    def learned(penalty):
        problem = offline.problem(found, reward, irl.of(world, demos), penalty, decay=1e-2)
        start = jnp.zeros(25), jnp.zeros(world.shape)
        result = bl.solve(problem, method, *start, steps=400, progress=False, certify=False)
        pessimistic = offline.pessimistic(reward, found.doubt, penalty)
        return worth(mdp.solve(found.mdp, pessimistic(result.x)).policy)

    seen = jnp.zeros(world.shape).at[demos.states[:, :-1], demos.actions].add(1.0)
    cloned = worth(compare.clone(irl.Visits(seen, world.start), 0.1))
    assert learned(20.0) > cloned
