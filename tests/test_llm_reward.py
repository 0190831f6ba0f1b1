"""Reward models: where they are read, what is learned, and what is asked of an answer's end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.policy import Responses
from bilevel.apps.llm.reward import Ended, Head, last

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
