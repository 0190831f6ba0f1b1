"""Learning from a stream of feedback: a simulated user is followed, resumed and rolled back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.rl.experience import (
    Feedback,
    Kind,
    Learner,
    Loop,
    SimulatedUser,
    problem,
    regrets,
)
from bilevel.problem import Batch

TASTE = np.array([[2.0, 0.0, -1.0, 0.0], [-1.0, 0.0, 0.0, 2.0]])


def follow(loop, user, steps):
    return [loop.tell(user(asked)) for asked in itertools.islice(loop, steps)]


def test_the_policy_follows_a_user():
    loop, user = Loop(2, 4, seed=1), SimulatedUser(TASTE)
    metrics = follow(loop, user, 300)
    assert np.argmax(loop.policy, axis=1).tolist() == [0, 3]
    assert metrics[-1]["time"] == 300
    assert metrics[-1]["satisfaction"] > 0.6
    np.testing.assert_allclose(loop.policy.sum(axis=1), 1, atol=1e-12)


def test_a_resumed_loop_is_equal_bit_for_bit(tmp_path):
    whole, user = Loop(2, 4), SimulatedUser(TASTE)
    follow(whole, user, 40)
    whole.save(tmp_path / "loop.npz")
    stored = user.utilities, user._draw.bit_generator.state
    follow(whole, user, 40)
    again = Loop(2, 4).restore(tmp_path / "loop.npz")
    user.utilities, user._draw.bit_generator.state = stored
    follow(again, user, 40)
    for one, other in zip((whole.reward, whole.policy), (again.reward, again.policy), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.time, again.means) == (whole.time, whole.means)
    with pytest.raises(ValueError, match=r"\(3, 4\) are needed"):
        Loop(3, 4).restore(tmp_path / "loop.npz")


def test_a_fall_of_satisfaction_rolls_the_tables_back():
    loop = Loop(1, 3, window=20, fall=0.3)
    for _ in range(100):
        loop.tell(Feedback(0, (0, 1), loop.time, Kind.SCALAR, 1.0))
    held = loop.reward
    rolled = 0.0
    while not rolled:
        rolled = loop.tell(Feedback(0, (0, 1), loop.time, Kind.SCALAR, -1.0))["rolled back"]
        assert loop.time < 130
    assert loop.rollbacks == 1
    np.testing.assert_allclose(loop.reward, held, atol=0.2)  # near 1, and not on the way to -1
    assert loop.means.seen == 0


def test_every_kind_of_feedback_moves_the_reward_its_way():
    for kind, value, sign in ((0, 1.0, 1), (0, 0.0, -1), (1, 2.0, 1), (2, 0.0, -1)):
        loop = Loop(1, 3)
        loop.tell(Feedback(0, (0, 1), 0, Kind(kind), value))
        assert np.sign(loop.reward[0, 0] - loop.reward[0, 1]) == sign


def test_the_policy_stays_near_the_reference():
    reference = jnp.array([[0.7, 0.2, 0.1]])
    solved = problem(reference, Learner(policy_step=1.0, farthest=0.1))
    y = solved.lower_step(jnp.array([[0.0, 0.0, 3.0]]), jnp.log(reference), Batch())
    kl = jnp.sum(jnp.exp(y) * (y - jnp.log(reference)))
    assert kl == pytest.approx(0.1, abs=1e-5)
    near = solved.lower_step(jnp.array([[0.0, 0.01, 0.0]]), jnp.log(reference), Batch())
    expected = np.array([0.7, 0.2 * np.exp(0.01 / 0.3), 0.1])
    np.testing.assert_allclose(jnp.exp(near)[0], expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        (Feedback(2, (0, 1), 0, Kind.SCALAR, 0.0), "about prompt 2; there are 0 to 1"),
        (Feedback(0, (0, 4), 0, Kind.SCALAR, 0.0), "about response 4; there are 0 to 3"),
        (Feedback(0, (0, 1), 0, Kind.SCALAR, float("nan")), "finite number"),
        (Feedback(0, (0, 1), 0, Kind.PREFERENCE, 1.5), "from 0 to 1"),
    ],
)
def test_feedback_that_cannot_be_learned_from_is_refused(feedback, said):
    with pytest.raises(ValueError, match=said):
        Loop(2, 4).tell(feedback)


@pytest.mark.slow
def test_one_step_a_comparison_stays_closest_to_a_user_who_changes():
    found = jax.jit(jax.vmap(regrets))(jax.random.split(jax.random.key(0), 8))
    single, batch, frozen = (float(each.mean()) for each in found)
    assert single < 0.6 * batch < frozen


@pytest.mark.slow
def test_decreasing_steps_leave_no_regret_when_the_user_stays():
    keys = jax.random.split(jax.random.key(0), 4)
    ends = [
        jax.jit(jax.vmap(lambda key, n=n: regrets(key, drift=0.0, decay=True, steps=n).single))(
            keys
        )
        for n in (4000, 16000)
    ]
    assert ends[1].mean() < 0.5 * ends[0].mean()
    assert ends[1].mean() < 0.01
