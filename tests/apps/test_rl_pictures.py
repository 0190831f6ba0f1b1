"""Pictures of inverse RL with networks: episodes as strips, and rewards up to shaping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.rl import mdp
from bilevel.apps.rl.neural import shaped, strips
from bilevel.apps.rl.neural.environments import CartPole, Finite, Pendulum
from bilevel.apps.rl.neural.soft_q import SoftQ

PENDULUM = Pendulum()


def true(x, seen, action, absorbed):
    """x times the true reward, from what networks see."""
    return x * PENDULUM.reward(PENDULUM.place(seen * PENDULUM.scale), action)


@pytest.mark.parametrize(("x", "wanted"), [(0.3, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_the_true_reward_explains_itself_up_to_a_scale(x, wanted):
    policy = SoftQ(PENDULUM, true)
    assert shaped.share(policy, jnp.asarray(x)) == pytest.approx(wanted, abs=1e-6)


def test_weights_between_nodes_foretell_linear_functions():
    states = np.array([(0.1, 0.25), (-3.0, -8.0), (3.1, 8.0), (1.0, 5.2)])
    weights = shaped.between(states)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights @ np.asarray(shaped.nodes())[:, 1], states[:, 1], atol=1e-6)
    np.testing.assert_allclose(shaped.between(np.asarray(shaped.nodes())).max(axis=1), 1, atol=1e-5)


def test_a_strip_shows_the_pole_where_it_is():
    upright = strips.scene(PENDULUM, np.array([1.0, 0.0, 0.0]))
    assert upright is not None
    np.testing.assert_allclose(upright.rod, [(0, 0), (0, 1)])
    cart = strips.scene(CartPole(), np.array([0.5, 0.0, 0.1, 0.0]))
    assert cart is not None
    np.testing.assert_allclose(cart.rod, [(0.5, 0), (0.5 + np.sin(0.1), np.cos(0.1))])
    drawn = strips.strip(PENDULUM, np.tile([1.0, 0.0, 0.0], (30, 1)))
    assert drawn is not None
    assert [axes.get_title("left") for axes in drawn.axes[:2]] == ["step 0", "step 3"]
    small = mdp.random_mdp(0, 3, 2)
    assert strips.strip(Finite(small, jnp.zeros((3, 2))), np.eye(3)) is None


def test_an_episode_ends_with_what_ended_it():
    seen = strips.one_episode(
        CartPole(horizon=30), lambda key, seen: jnp.asarray(0), jax.random.key(0)
    )
    assert 5 < len(seen) < 30
    fell = np.abs(seen[:, 2]) > 12 * np.pi / 180
    assert fell.tolist() == [False] * (len(seen) - 1) + [True]
