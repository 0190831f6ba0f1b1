"""Reward models: where they are read, what is learned, and what is asked of an answer's end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.reward_learning import problem
from bilevel.apps.llm.methods.rlhf import RewardModel
from bilevel.apps.llm.methods.task import Feedback, Task, Weights
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies.policy import Preferences, Responses
from bilevel.apps.llm.policy_steps.policy_step import Hold
from bilevel.apps.llm.rewards import losses
from bilevel.apps.llm.rewards.reward import Ended, Head, judged, last
from bilevel.problem import Batch

MASK = jnp.array([[True, True, False], [True, True, True], [False, False, False]])
ROWS = Responses(jnp.zeros(3, int), jnp.array([[4, 7, 7], [7, 4, 5], [7, 7, 7]]), MASK)


def hidden(trunk, responses):
    """Two states a token: the token, scaled, and its place."""
    place = jnp.broadcast_to(jnp.arange(3.0), responses.tokens.shape)
    return jnp.stack([trunk * responses.tokens.astype(float), place], axis=-1)


def test_the_last_token_is_that_of_the_mask():
    values = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert last(values, MASK).tolist() == [2, 6, 0]


def test_a_head_reads_the_last_token_of_the_response():
    x = {"trunk": jnp.array(2.0), "weight": jnp.array([[1.0], [10.0]]), "bias": jnp.array([0.5])}
    head = Head(hidden)
    assert head(x, ROWS).tolist() == [14 + 10 + 0.5, 10 + 20 + 0.5, 0]
    assert head.tokens(x, ROWS)[0].tolist() == [8.5, 24.5, 0]
    padded = ROWS._replace(tokens=ROWS.tokens.at[0, 2].set(99))
    assert jnp.array_equal(head(x, padded), head(x, ROWS))


def test_a_frozen_trunk_is_not_learned():
    head = Head(hidden, trunk=jnp.array(2.0))
    x = head.init(jax.random.key(0), 2)
    assert set(x) == {"weight", "bias"}
    trunk = jax.grad(lambda trunk: Head(hidden, trunk=trunk)(x, ROWS).sum())(jnp.array(2.0))
    assert trunk == 0
    own = Head(hidden).init(jax.random.key(0), 2, trunk=jnp.array(2.0))
    assert jnp.array_equal(Head(hidden)(own, ROWS), head(x, ROWS))
    slope = jax.grad(lambda x: Head(hidden)(x, ROWS).sum())(own)
    assert slope["trunk"] != 0


def test_several_heads_are_combined():
    x = {"weight": jnp.array([[1.0, 3.0], [0.0, 0.0]]), "bias": jnp.zeros(2)}
    mean, least = (Head(hidden, jnp.array(1.0), combine=f)(x, ROWS) for f in (jnp.mean, jnp.min))
    assert mean.tolist() == [14, 10, 0]
    assert least.tolist() == [7, 5, 0]
    with pytest.raises(ValueError, match="trunk"):
        Head(hidden).init(jax.random.key(0), 2)


def test_the_start_of_a_head_has_the_scale_of_its_width():
    x = Head(hidden, jnp.array(1.0)).init(jax.random.key(0), 9999)
    np.testing.assert_allclose(x["weight"].std() * 100, 1, atol=0.05)


def test_an_answer_without_an_end_gets_the_fixed_score():
    reward = Ended(lambda x, rows: jnp.full(3, x), 7)
    assert reward(5.0, ROWS).tolist() == [5, -1, -1]
    assert Ended(reward.reward, jnp.array([5, 7]), -2.0)(5.0, ROWS).tolist() == [5, 5, -2]


# --- preferences after every token ------------------------------------------------------------


def pairs():
    others = ROWS._replace(tokens=jnp.array([[4, 5, 7], [7, 9, 2], [7, 7, 7]]))
    return Preferences(*(Responses(*(leaf[:2] for leaf in rows[:3])) for rows in (ROWS, others)))


def head_and_parameters():
    head = Head(hidden, trunk=jnp.array(0.3))
    return head, {"weight": jnp.array([[1.0], [0.4]]), "bias": jnp.array([0.5])}


@pytest.mark.slow
def test_preferences_after_every_token_are_learned():
    """By the staged reward model and by the bilevel problem alike, and not as of the last token."""
    head, x = head_and_parameters()
    chosen, rejected = pairs()
    margin = 0.3 * (np.asarray(chosen.tokens) - np.asarray(rejected.tokens))
    each = [[margin[0, 1]], margin[1, 1:]]  # where they have parted, to the longer one's end
    expected = np.mean([np.log1p(np.exp(-np.asarray(row))).mean() for row in each])
    np.testing.assert_allclose(judged(head, x, pairs(), per_token=True), expected)
    assert abs(judged(head, x, pairs()) - expected) > 1e-3
    task = Task(tiny.bandit(1, 2), jnp.zeros((1, 2)), 1.0, head, preferences=pairs())
    settings = {"steps": 1, "reward": x, "log_every": 1, "progress": False}
    found = align(task, RewardModel(0.0, per_token=True), **settings)
    np.testing.assert_allclose(found.history["upper"][-1], expected)
    posed = problem(task, Hold(), weights=Weights(0.0, 1.0), per_token=True)
    batch = Batch(Feedback(preferences=pairs()), None)
    np.testing.assert_allclose(posed.upper(x, task.reference, batch.upper), expected)
    slope = posed.hypergradient(x, task.reference, batch)
    plain = jax.grad(
        lambda x: losses.token_preference(*(head.tokens(x, r) for r in pairs()), pairs())
    )
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(plain(x)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_reward_of_whole_responses_has_no_tokens():
    with pytest.raises(
        TypeError, match=r"FreeRewards is a reward of whole responses.*reward\.Head"
    ):
        judged(tiny.FreeRewards(tiny.bandit(1, 2)), jnp.zeros((1, 2)), pairs(), per_token=True)
