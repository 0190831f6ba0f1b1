"""The enumerated language model: its table against the network read literally, and its optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables


@pytest.fixture(scope="module")
def small():
    return tiny.world(0, vocabulary=3, length=3, prompts=2, demonstrations=20, preferences=30)


def literally(y, policy, prompt: int, tokens: list[int]) -> float:
    """The network on one-hot inputs (tokens, position, prompt), token by token, in numpy."""
    y, (V, H) = jax.tree.map(np.asarray, y), (policy.vocabulary, policy.length)
    total = 0.0
    for t, token in enumerate(tokens):
        row = np.zeros(H * V + H + policy.prompts)
        for i in range(t):
            row[i * V + tokens[i]] = 1
        row[H * V + t] = row[H * V + H + prompt] = 1
        for name in ("first", "second", "last"):
            row = row @ y[name]["weight"] + y[name]["bias"]
            row = row if name == "last" else np.tanh(row)
        total += row[token] - np.log(np.exp(row).sum())
    return total


def test_the_table_is_the_network_on_every_prefix(small):
    policy, table = small.policy, small.log_reference
    np.testing.assert_allclose(jnp.exp(table).sum(axis=1), 1)
    everything = policy.everything()
    for row in (0, 5, 26, 27, 40):
        prompt, tokens = int(everything.prompts[row]), everything.tokens[row].tolist()
        expected = literally(small.reference, policy, prompt, tokens)
        np.testing.assert_allclose(table.ravel()[row], expected, rtol=1e-12)
    np.testing.assert_allclose(
        policy.logprob(small.reference, everything).reshape(table.shape), table
    )
    assert jnp.array_equal(policy.number(everything).reshape(table.shape)[1], jnp.arange(27))


def test_padding_has_no_log_probability(small):
    everything = small.policy.everything()
    cut = everything._replace(mask=everything.mask.at[:, -1].set(False))
    tokens = small.policy.token_logprobs(small.reference, everything)
    assert jnp.array_equal(small.policy.logprob(small.reference, cut), tokens[:, :-1].sum(axis=1))


@pytest.mark.slow(unless=lambda temperature: temperature == 0.5)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_follow_the_table(small, temperature):
    policy, n = small.policy, 40_000
    prompts = jnp.ones(n, int)
    said = policy.sample(small.reference, prompts, jax.random.key(0), temperature=temperature)
    cooled = [jax.nn.log_softmax(level / temperature) for level in policy.levels(small.reference)]
    exact = sum(jnp.repeat(level[1].ravel(), 3 ** (2 - t)) for t, level in enumerate(cooled))
    seen = jnp.bincount(policy.number(said), length=27) / n
    # Five standard deviations of a multinomial share.
    bound = 5 * jnp.sqrt(jnp.exp(exact) / n) + 1e-4
    assert (jnp.abs(seen - jnp.exp(exact)) < bound).all()


def test_the_optimum_has_the_value_of_the_partition_function(small):
    beta, reference, best = small.beta, small.log_reference, small.log_optimum
    value = tables.objective(best, reference, small.rewards, beta)
    partition = beta * jax.nn.logsumexp(reference + small.rewards / beta, axis=1).mean()
    np.testing.assert_allclose(value, partition)
    nearby = jax.nn.log_softmax(best + 0.1 * jax.random.normal(jax.random.key(1), best.shape))
    assert tables.objective(nearby, reference, small.rewards, beta) < value
    # What is lost is β times the divergence from the optimum.
    np.testing.assert_allclose(
        value - tables.objective(nearby, reference, small.rewards, beta),
        beta * tables.kl(nearby, best),
        rtol=1e-9,
    )


def test_a_world_measures_from_reference_to_optimum(small):
    assert float(small.reached(small.reference)) == 0
    assert small.divergence(small.reference) > 0.1
    assert small.accuracy(tiny.FreeRewards(small.policy), small.rewards) == 1
    assert small.accuracy(tiny.FreeRewards(small.policy), -small.rewards) == 0
    assert small.accuracy(tiny.FreeRewards(small.policy), 0 * small.rewards) == 0.5


def test_pair_rewards_sum_over_neighbours():
    table = jnp.arange(8.0).reshape(2, 2, 2)
    rows = tiny.Responses(
        jnp.array([0, 3]), jnp.array([[0, 1, 1], [1, 0, 1]]), jnp.ones((2, 3), bool)
    )
    assert tiny.pair_rewards(table, rows).tolist() == [1 + 3, 6 + 5]
    short = rows._replace(mask=jnp.array([[True, True, False]] * 2))
    assert tiny.pair_rewards(table, short).tolist() == [1, 6]
