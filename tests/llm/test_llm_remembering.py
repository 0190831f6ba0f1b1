"""What is remembered after unlearning: every number by hand, and the questions it is asked with."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.models import config, decoder, parameters, transformer
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses
from bilevel.apps.llm.unlearning import judge, losses, metrics, task, verdict

# --- by losses ---------------------------------------------------------------------------------

LOSS = np.log([2.0, 4.0])  # a token of the right answers has probability 1/2 and 1/4
WRONG = np.log([[4.0, 16.0], [2.0, 2.0]])


def test_probabilities_and_shares_among_answers():
    assert metrics.probability(LOSS) == pytest.approx((1 / 2 + 1 / 4) / 2)
    shares = 0.5 / (0.5 + 0.25 + 0.0625), 0.25 / (0.25 + 0.5 + 0.5)
    assert metrics.choice(LOSS, WRONG) == pytest.approx(np.mean(shares))


def test_a_truth_ratio_is_of_geometric_means_of_probabilities():
    ratio = metrics.truth_ratio(LOSS, WRONG)
    assert ratio == pytest.approx([(1 / 2) / np.sqrt(1 / 4 * 1 / 16), (1 / 4) / (1 / 2)])
    assert metrics.truth_score(ratio) == pytest.approx(((1 - 1 / 4) + 0) / 2)


def test_forget_quality_is_the_p_value_of_all_ways_to_mix_two_samples():
    """The largest distance of the distribution functions, in all orders of 3 and 4 values."""
    a, b = np.array([0.1, 0.2, 0.35]), np.array([0.3, 0.4, 0.5, 0.6])

    def distance(of_a):
        taken = np.cumsum(of_a) / 3 - np.cumsum(1 - np.array(of_a)) / 4
        return np.abs(taken).max()

    order = np.argsort(np.concatenate([a, b])) < 3
    found = distance(order.astype(int))
    every = [distance([i in at for i in range(7)] * np.ones(7))
             for at in itertools.combinations(range(7), 3)]  # fmt: skip
    expected = np.mean(np.array(every) > found - 1e-12)
    assert metrics.forget_quality(a, b) == pytest.approx(expected)
    assert metrics.forget_quality(a, a) == pytest.approx(1)


def test_utility_is_the_harmonic_mean_of_all_numbers():
    assert metrics.utility([[0.5, 1.0], [0.25]]) == pytest.approx(3 / (2 + 1 + 4))
    assert metrics.utility([[0.0, 1.0], [0.25]]) == 0


# --- by texts and tokens -----------------------------------------------------------------------


def test_rouge_counts_the_longest_common_subsequence_of_words():
    # "the cat on mat" is common: 4 of 6 words of the true text, 4 of 5 of what was said.
    found = metrics.rouge_l("The CAT, sat on mat!", "the cat is on the mat")
    assert found == pytest.approx((4 / 6, 4 / 5, 2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)))
    assert metrics.rouge_l("a b", "b a").recall == 0.5
    assert metrics.rouge_l("", "a") == (0, 0, 0)
    assert metrics.rouge_l("Zoë", "zoë") == (1, 1, 1)


def test_the_least_likely_tokens_tell_members():
    logprobs = np.array([[-1.0, -5, -3, -2], [-2, -4, 9, 9]])
    mask = np.array([[True] * 4, [True, True, False, False]])
    assert metrics.least_likely(logprobs, mask, 0.5).tolist() == [-4, -4]
    assert metrics.least_likely(logprobs, mask, 0.1).tolist() == [-5, -4]
    # Pairs: 1 > 0; 2 = 2 counts half and 2 > 0, twice.
    assert metrics.auc(np.array([1.0, 2, 2]), np.array([2.0, 0])) == pytest.approx(4 / 6)
    assert metrics.privacy_leakage(0.9, 0.6) == pytest.approx(0.5)
    assert np.isnan(metrics.privacy_leakage(0.9, 0.0))


# --- questions ---------------------------------------------------------------------------------


def row(prompt, response):
    return Row(prompt, response, None)


def test_wrong_answers_are_right_ones_to_the_most_similar_questions():
    rows = [row([1, 2, 3], [7]), row([1, 2, 4], [8]), row([5], [9]), row([1, 2, 3, 5], [7])]
    assert judge.wrong_answers(rows[0], rows, 2) == [[8], [9]]
    assert judge.wrong_answers(rows[2], rows, 1) == [[7]]  # of the last row, which holds a 5
    assert verdict.half(row([1], [2, 3, 4])) == row([1, 2, 3], [4])


CONFIG = config.llama(40, 16, 32, 2, 2, tied=True, max_length=32)
POLICY = model.Decoder(CONFIG, None, FullFineTune())
PARAMS = parameters.init(CONFIG, jax.random.key(0), deviation=0.3)


def arrays(rows):
    return model.responses(rows, model.prompt_batch(rows, pad_id=0, length=3), pad_id=0, length=2)


@pytest.mark.slow
def test_a_policy_is_asked_for_losses_and_its_likeliest_answer():
    rows = [row([1, 2, 3], [7, 8]), row([2, 3], [9]), row([4], [7, 9])]
    asked = judge.questions(rows, arrays, count=2, wrong=2)
    policy = model.Decoder(CONFIG, None, FullFineTune(), model.Drawing(new=2))
    found = judge.remembered(policy, PARAMS, asked, lambda ids: " ".join(map(str, ids)), rows=3)

    def loss(tokens, start):
        scores = np.asarray(decoder.logits(CONFIG, PARAMS, jnp.asarray([tokens], jnp.int32)))[0]
        logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return -np.mean([logp[i - 1, tokens[i]] for i in range(start, len(tokens))])

    np.testing.assert_allclose(found.loss, [loss([1, 2, 3, 7, 8], 3), loss([2, 3, 9], 2)], 1e-4)
    expected = [
        [loss([1, 2, 3, 9], 3), loss([1, 2, 3, 7, 9], 3)],
        [loss([2, 3, 7, 8], 2), loss([2, 3, 7, 9], 2)],
    ]
    assert found.wrong is not None
    np.testing.assert_allclose(found.wrong, expected, 1e-4)
    first = np.asarray(decoder.logits(CONFIG, PARAMS, jnp.array([[1, 2, 3]], jnp.int32)))[0, -1]
    assert found.said[0].split()[0] == str(first.argmax())
    assert found.rouge[0] == metrics.rouge_l(found.said[0], "7 8")


# --- RMU -----------------------------------------------------------------------------------------


def batch():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 7)), jnp.int32)
    prompts = model.PromptBatch(tokens[:, :4], jnp.ones((2, 4), bool))
    mask = jnp.array([[True, True, True], [True, False, False]])
    said = Responses(prompts, tokens[:, 4:], mask)
    return tokens, task.Answers(said, said)


def test_states_after_all_layers_are_those_before_the_last_norm():
    tokens, rows = batch()
    states = POLICY.token_states(PARAMS, rows.forget, 2)
    found = transformer.norm(CONFIG, PARAMS["norm"], states)
    expected = decoder.hidden(CONFIG, PARAMS, tokens)[:, 3:6]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1, 0], expected[1, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rmu_is_the_mean_square_of_masked_states_and_moves_only_the_layers_below():
    _, rows = batch()
    target = losses.steering(16, 6.5, jax.random.key(1))
    assert np.linalg.norm(target) == pytest.approx(6.5)
    value, grad = jax.value_and_grad(task.Steering(POLICY, 1, target))(PARAMS, rows)
    states = np.asarray(POLICY.token_states(PARAMS, rows.forget, 1))
    four = np.concatenate([states[0], states[1, :1]])
    assert value == pytest.approx(np.mean((four - np.asarray(target)) ** 2), rel=1e-4)
    assert np.abs(grad["layers"][0]["down"]["kernel"]).max() > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grad["layers"][1]))
    held = task.SameStates(POLICY, 1, PARAMS)
    assert held(PARAMS, rows) == 0
    other = jax.tree.map(lambda leaf: leaf * 1.1, PARAMS)
    moved = np.asarray(POLICY.token_states(other, rows.retain, 1)) - states
    expected = np.mean(np.concatenate([moved[0], moved[1, :1]]) ** 2)
    assert held(other, rows) == pytest.approx(expected, rel=1e-3)
