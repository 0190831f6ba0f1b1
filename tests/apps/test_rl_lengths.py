"""PALU on tables: the rule of the budgets by hand, and planted lengths found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.apps.rl import lengths

HOPS, LONGEST = np.array([1, 3, 4, 6, 8, 11]), 12


def test_chances_are_those_of_guessing_the_hops_left_out():
    found = lengths.chain(jnp.array([1, 3]), 4, 0.25)
    np.testing.assert_allclose(found, [[1, 1, 1, 1], [1 / 16, 1 / 4, 1, 1]])


def test_a_budget_becomes_a_quantile_of_what_is_right_or_all_there_is():
    """Five responses to each of two prompts, all lengths equally likely, right where drawn < 1."""
    problem = lengths.problem(jnp.ones((2, 5)), 0.6, quantile=0.5)
    drawn = (np.array([1, 2, 3, 4, 5]) - 0.5) / 5  # lengths 1 to 5
    right = np.array([[0.5, 2, 0.5, 0.5, 0.5], [0.5, 2, 2, 0.5, 0.5]])
    batch = bl.Batch(jnp.asarray(np.stack([[drawn, drawn], right])))
    x, y = jnp.array([4.0, 4.0]), jnp.zeros((2, 5))
    assert problem.hypergradient is not None
    new = x - problem.hypergradient(x, y, batch)
    # 1, 3 and 4 are right and within the budget, three of five; 1 and 4 are too few.
    assert new.tolist() == [3, 5]


def test_the_policy_is_the_best_one_for_the_budget():
    chances = lengths.chain(jnp.array([1, 2]), 3, 0.25)
    problem = lengths.problem(chances, temperature=0.5)
    x = jnp.array([2.0, 3.0])
    assert problem.lower_step is not None
    y = problem.lower_step(x, jnp.zeros((2, 3)), None)
    weights = np.exp([[2, 2, 0], [0.5, 2, 2]])
    np.testing.assert_allclose(jax.nn.softmax(y), weights / weights.sum(1, keepdims=True), 1e-6)
    slope = jax.grad(problem.lower, 1)(x, y, None)
    np.testing.assert_allclose(slope, 0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_length_is_found_for_every_type_of_prompt(seed):
    found = bl.solve(
        lengths.problem(lengths.chain(jnp.asarray(HOPS), LONGEST), 0.9),
        lengths.method(),
        jnp.full(len(HOPS), float(LONGEST)),
        jnp.zeros((len(HOPS), LONGEST)),
        data=lengths.data(len(HOPS)),
        steps=100,
        key=jax.random.key(seed),
        log_every=100,
        certify=False,
        progress=False,
    )
    assert found.x.tolist() == HOPS.tolist()
    chances = jax.nn.softmax(found.y)[jnp.arange(len(HOPS)), HOPS - 1]
    assert jnp.all(chances > 0.99)
