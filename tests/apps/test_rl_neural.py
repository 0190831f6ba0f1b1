"""Inverse RL with networks: environments, the soft Q below, the reward above."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import check_goes_on_bit_for_bit

import bilevel as bl
from bilevel.apps.rl import mdp
from bilevel.apps.rl.neural import baselines, irl, rollouts
from bilevel.apps.rl.neural.environments import CartPole, Finite, Pendulum
from bilevel.apps.rl.neural.experts import Demos, expert, record
from bilevel.apps.rl.neural.named import make
from bilevel.apps.rl.neural.rewards import Network, Quadratic
from bilevel.apps.rl.neural.soft_q import SoftQ

SMALL = mdp.random_mdp(0, 3, 2)
KEY = jax.random.key(0)


def finite(horizon: int) -> Finite:
    return Finite(SMALL, jnp.asarray(np.random.default_rng(0).normal(size=(3, 2))), horizon)


@jax.numpy_dtype_promotion("standard")  # gymnax mixes types
def test_cart_and_pendulum_move_as_those_of_gymnax():
    gymnax = pytest.importorskip("gymnax")
    cart, pendulum = CartPole(), Pendulum()
    for name, ours, state, held in (
        ("CartPole-v1", cart, [0.1, -0.3, 0.05, 0.4], ("x", "x_dot", "theta", "theta_dot")),
        ("Pendulum-v1", pendulum, [2.0, -1.5], ("theta", "theta_dot")),
    ):
        theirs, params = gymnax.make(name)
        at = jnp.asarray(state)
        _, there = theirs.reset_env(KEY, params)
        there = there.replace(**dict(zip(held, at, strict=True)))
        for action in range(ours.actions):
            _, seen = ours.step(KEY, at, jnp.asarray(action))
            move = action if ours is cart else pendulum.torque(jnp.asarray(action))
            wanted, _, reward, ended, _ = theirs.step_env(KEY, there, move, params)
            np.testing.assert_allclose(seen.observation, wanted, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(seen.reward, reward, rtol=1e-6)
            assert bool(seen.ended) == bool(ended)


def test_an_environment_of_gymnax_goes_on_from_its_own_state():
    pytest.importorskip("gymnax")
    env = make("MountainCar-v0")
    with jax.numpy_dtype_promotion("standard"):
        places, steps = rollouts.rollout(
            env, lambda key, seen: jnp.asarray(2), KEY, rollouts.start(env, KEY, 2), 5
        )
        rollouts.rollout(env, lambda key, seen: jnp.asarray(2), KEY, places, 5)
    assert steps.before.shape == (5, 2, len(env.scale))
    assert (steps.reward == -1).all()


def test_an_environment_that_is_not_known_is_refused():
    with pytest.raises((ValueError, ImportError), match=r"bilevel\[rl\]|no environment"):
        make("Cart-v7")


def test_a_rollout_that_goes_on_from_its_own_end_is_traced_once():
    env, traced = CartPole(horizon=20), []

    @jax.jit
    def play(key, places):
        traced.append(1)
        return rollouts.rollout(env, lambda key, seen: jnp.asarray(0), key, places, 3)[0]

    places = rollouts.start(env, KEY, 2)
    for _ in range(8):
        places = play(KEY, places)
    assert len(traced) == 1
    assert int(places.time.max()) < 20


def test_targets_are_soft_returns():
    """Against the recursion written out in NumPy."""
    env = finite(4)
    policy = SoftQ(env, lambda x, seen, a, absorbed: seen @ x, 0.9, 0.5, 0.7, copies=2, length=6)
    x, y = jnp.asarray([1.0, -2.0, 0.5]), policy.start(KEY, width=4)
    places = rollouts.start(env, KEY, 2)

    @jax.jit
    def both(y, places):
        _, steps = rollouts.rollout(env, policy.act(y), KEY, places, 6)
        return (
            steps,
            policy.q(y, steps.before),
            policy.q(y, steps.after),
            policy.targets(x, y, steps),
        )

    steps, q, later, found = jax.tree.map(np.asarray, both(y, places))
    soft = lambda q: 0.5 * np.log(np.exp(q / 0.5).sum(-1))  # noqa: E731
    assert steps.reset[3].all()
    wanted = np.zeros((6, 2))
    for t in reversed(range(6)):
        ahead = soft(later[t])
        if t < 5 and not steps.reset[t].all():
            chosen = np.take_along_axis(q[t + 1], steps.action[t + 1][:, None], 1)[:, 0]
            spent = chosen - soft(q[t + 1])
            ahead = 0.3 * ahead + 0.7 * (wanted[t + 1] - spent)
        wanted[t] = steps.before[t] @ x + 0.9 * ahead
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_what_has_ended_keeps_its_reward_for_ever():
    reward = Quadratic(4)
    policy = SoftQ(CartPole(), reward, 0.9, 0.5)
    x = reward.start(KEY).at[-1].set(2.0)
    np.testing.assert_allclose(policy.absorbed(x), (2 + 0.5 * np.log(2)) / 0.1)


def test_demonstrations_are_padded_with_their_end():
    demos = Demos(
        jnp.ones((2, 4, 4)), jnp.ones((2, 3), int), jnp.array([3, 2]), jnp.array([0, 1]) > 0
    )
    moves = irl.rows(demos, 5, jnp.full(4, 2.0))
    assert moves.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 3]
    assert moves.absorbed.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    np.testing.assert_allclose(moves.seen[:5], 0.5)


def test_the_hypergradient_is_the_difference_of_mean_features():
    """In the mean over many episodes, against visits computed from the kernel."""
    env, n = finite(5), 3000
    policy = SoftQ(env, Quadratic(3), 0.9, 0.5)
    y = jax.tree.map(lambda a: 3 * a, policy.start(KEY, width=4))
    shown = irl.Rows(jnp.eye(3)[:1], jnp.zeros(1, int), jnp.zeros(1), jnp.ones(1))
    problem = irl.problem(policy, episodes=n, decay=0.1)
    x = jnp.arange(7.0)
    batch = bl.Batch(irl.Drawn(shown, KEY), KEY)
    slope = problem.hypergradient
    assert slope is not None
    found = jax.jit(lambda x, y: slope(x, y, batch))(x, y) - 0.1 * x
    chance = jax.nn.softmax(policy.q(y, jnp.eye(3)) / 0.5)
    chain = np.einsum("sa,sat->st", np.asarray(chance), np.asarray(SMALL.kernel))
    law, visits = np.asarray(SMALL.start), np.zeros(3)
    for _ in range(5):
        visits, law = visits + law / 5, law @ chain
    gap = (visits - np.eye(3)[0]) / 0.5
    np.testing.assert_allclose(found, [*gap, *gap, 0], atol=5 * 2 * 0.5 / n**0.5)


def fitted(env, *, adversarial=False):
    demos, _ = record(env, expert(env), jax.random.key(7), 10)
    reward = Network(len(env.scale), bounded=not adversarial)
    policy = SoftQ(env, reward)
    problem = irl.problem(policy, adversarial=adversarial)
    return reward, policy, problem, irl.method(6), irl.data(demos, policy), demos


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", [False, True])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, adversarial):
    env = CartPole(horizon=20)
    reward, policy, problem, method, data, _ = fitted(env, adversarial=adversarial)
    start = reward.start(KEY), policy.start(KEY, width=8)
    check_goes_on_bit_for_bit(problem, method, start, data, tmp_path)


@pytest.mark.slow
def test_experts_are_worth_imitating():
    for env, least in ((CartPole(), 500), (Pendulum(), -200)):
        demos, worth = record(env, expert(env), KEY, 20)
        assert worth.mean() >= least
        assert demos.observations.shape == (20, env.horizon + 1, len(env.scale))
        assert not demos.ended.any()


@pytest.mark.slow
def test_a_clone_of_the_expert_balances():
    env = CartPole(horizon=100)
    _, policy, _, _, _, demos = fitted(env)
    y = jax.jit(lambda key: baselines.clone(policy, demos, key, steps=500))(KEY)
    moves = irl.rows(demos, 100, env.scale)
    assert irl.log_likelihood(policy, y, moves) > -0.3  # of a coin: -0.69
