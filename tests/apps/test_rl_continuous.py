"""Inverse RL where actions are numbers: the soft actor below, bodies, and their demonstrations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from resuming import check_goes_on_bit_for_bit

import bilevel as bl
from bilevel.apps.rl.neural import actions, demos, irl, rollouts
from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.bodies import body
from bilevel.apps.rl.neural.environments import Pendulum
from bilevel.apps.rl.neural.experts import expert, record
from bilevel.apps.rl.neural.rewards import Network, Quadratic
from bilevel.apps.rl.neural.search import search
from bilevel.apps.rl.neural.soft_actor import Gaussian, Moves, SoftActor
from bilevel.apps.rl.neural.soft_q import settling

KEY = jax.random.key(0)
ENV = Pendulum(actions=Box(1), horizon=12)
SMALL: dict[str, Any] = {"copies": 2, "length": 3, "rounds": 2, "fits": 2, "batch": 6}


def test_the_density_of_an_action_is_that_of_tanh_of_a_normal_number():
    at = np.array([-0.9, -0.2, 0.0, 0.5, 0.95])
    found = Gaussian(jnp.full((5, 1), 0.3), jnp.full((5, 1), -0.7)).log_density(
        jnp.asarray(at[:, None])
    )
    wanted = scipy.stats.norm.logpdf(np.arctanh(at), 0.3, np.exp(-0.7)) - np.log(1 - at**2)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_a_drawn_action_comes_with_its_log_density():
    of = Gaussian(jnp.array([0.3, -1.0]), jnp.array([-0.7, 0.2]))
    action, log = of.draw(KEY)
    np.testing.assert_allclose(log, of.log_density(action), rtol=1e-9)


def test_targets_of_the_critics_are_soft_returns():
    """Against the recursion in NumPy: two copies, of which one has ended at the second of three."""
    policy = SoftActor(
        ENV, lambda x, seen, a, absorbed: (1 - absorbed) * x + absorbed, 0.9, 0.2, 0.7
    )
    y, ones = policy.start(KEY, width=4), jnp.ones((3, 2))
    ended = jnp.array([[False, False], [False, True], [False, False]])
    made, seen = np.array([[0.4, -1.0], [1.5, 0.2], [-0.3, 0.7]]), jnp.ones((3, 2, 3))
    rows = Moves(seen, ones[..., None], seen, jnp.asarray(made), ended, ended)
    action, log = policy.policy(y, rows.after).draw(KEY)
    ahead = np.minimum(*(np.asarray(policy.q(c, rows.after, action)) for c in y["critics"]))
    ahead = np.where(ended, (1 + 0.2 * np.log(2)) / 0.1, ahead - 0.2 * np.asarray(log))
    wanted = 3 + 0.9 * ahead
    wanted[1, 0] = 3 + 0.9 * (0.3 * ahead[1, 0] + 0.7 * (wanted[2, 0] - 0.2 * made[2, 0]))
    wanted[0] = 3 + 0.9 * (0.3 * ahead[0] + 0.7 * (wanted[1] - 0.2 * made[1]))
    found = policy.targets(jnp.asarray(3.0), y, y["critics"], rows, KEY)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_a_wrong_use_is_refused():
    with pytest.raises(ValueError, match="no multiple of length = 16"):
        SoftActor(ENV, Quadratic(3), batch=100)
    with pytest.raises(ValueError, match="take SoftQ"):
        SoftActor(Pendulum(), Quadratic(3))


@pytest.mark.slow
def test_the_oldest_moves_are_forgotten():
    policy, x = SoftActor(ENV, Quadratic(3), **SMALL), jnp.zeros(7)
    y = policy.start(KEY, width=4)
    step = jax.jit(lambda y, memory, key: policy(x, y, memory, key))
    memory, kept = policy.init(x, y), []
    for key in jax.random.split(KEY, 3):
        y, memory = step(y, memory, key)
        kept.append(np.asarray(memory.moves.before))
    assert kept[0].shape == (2, 3, 2, 3)  # lower steps, time, copies, what is observed
    np.testing.assert_array_equal(kept[0][1], 0)
    np.testing.assert_array_equal(kept[2][1], kept[1][1])
    assert (kept[2][0] != kept[1][0]).any(axis=-1).all()


def test_the_hypergradient_is_the_difference_of_mean_features():
    """Of the very episodes that the key of the batch plays."""
    policy, x, decay = SoftActor(ENV, Quadratic(3), 0.9, 0.5), jnp.arange(7.0), 0.1
    y = policy.start(KEY, width=4)
    shown = irl.Rows(jnp.ones((1, 3)), jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones(1))
    slope = irl.problem(policy, episodes=2, decay=decay).hypergradient
    assert slope is not None
    found = slope(x, y, bl.Batch(irl.Drawn(shown, KEY), KEY))
    steps, _ = rollouts.episodes(ENV, policy.act(y), KEY, 2)
    seen = np.asarray(steps.before).reshape(-1, 3) / np.array([1, 1, 8])
    gap = np.concatenate([seen.mean(0) - 1, (seen**2).mean(0) - 1, [0]]) / 0.5
    np.testing.assert_allclose(found, gap + decay * np.arange(7), rtol=1e-10)


def learned(env: Any = ENV, steps=6, **settings):
    shown, _ = record(env, lambda key, seen: actions.uniform(env.actions, key), KEY, 2)
    reward = Network(len(env.scale), env.actions)
    policy = SoftActor(env, reward, update=settling(steps), **settings)
    return reward, policy, shown


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    reward, policy, shown = learned(**SMALL)
    start = reward.start(KEY), policy.start(KEY, width=8)
    problem, method = irl.problem(policy, episodes=2), irl.method(6)
    check_goes_on_bit_for_bit(problem, method, start, irl.data(shown, policy), tmp_path)


def good() -> dict[str, Any]:
    made, worth = record(ENV, lambda key, seen: jnp.full(1, 0.5), KEY, 2)
    return {**{k: np.asarray(v) for k, v in made._asdict().items()}, "returns": np.asarray(worth)}


def with_(value):
    def change(held):
        held["actions"] = held["actions"].copy()
        held["actions"][0, 4, 0] = value
        return held

    return change


BAD = {
    r"actions\[0, 4, 0\] is 1.5; a number from -1 to 1": with_(1.5),
    r"actions\[0, 4, 0\] is nan": with_(np.nan),
    r"needs \(n, t \+ 1, 3\) and \(n, t, 1\)": lambda g: {**g, "actions": g["actions"][..., 0]},
    r"actions \(2, 12, 2\)": lambda g: {**g, "actions": np.tile(g["actions"], 2)},
    "demonstration 0 does not move at step 4 as Pendulum does": with_(-0.5),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_demonstrations_are_refused_with_a_sentence(tmp_path, said):
    np.savez(tmp_path / "bad.npz", **BAD[said](good()))
    with pytest.raises(ValueError, match=said) as caught:
        demos.read(tmp_path / "bad.npz", ENV, "Pendulum")
    assert "\n" not in str(caught.value)


def test_good_ones_are_read_with_their_returns(tmp_path):
    held = good()
    wanted: Any = held.pop("returns")
    np.savez(tmp_path / "good.npz", **held)
    found, worth = demos.read(tmp_path / "good.npz", ENV, "Pendulum")
    np.testing.assert_allclose(found.actions, 0.5)
    assert worth is not None
    np.testing.assert_allclose(worth, wanted)


def test_rows_of_demonstrations_keep_the_width_of_actions():
    _, policy, shown = learned()
    moves = irl.rows(shown, 12, ENV.scale)
    assert moves.action.shape == (26, 1)
    assert moves.weight.sum() == 24
    y = policy.start(KEY, width=4)
    assert jnp.isfinite(irl.log_likelihood(policy, y, moves))


def worth(env, act):
    return float(rollouts.returns(*rollouts.episodes(env, act, jax.random.key(100), 16)).mean())


@pytest.mark.slow
def test_ten_demonstrations_teach_a_pendulum_its_torque():
    env, steps = Pendulum(actions=Box(1)), 100
    shown, _ = record(env, expert(env), jax.random.key(7), 10)
    reward = Network(3)
    policy = irl.follower(env, reward, steps=steps, temperature=0.1)
    problem, method = irl.problem(policy), irl.method(steps)
    state = method.init(problem, reward.start(KEY), policy.start(KEY))
    data = irl.data(shown, policy)
    state, _ = bl.run(problem, method, state, data=data, key=KEY, steps=steps)
    low = worth(env, lambda key, seen: actions.uniform(env.actions, key))
    high = worth(env, expert(env))
    assert (worth(env, policy.act(state.y)) - low) / (high - low) >= 0.9


@pytest.mark.slow
def test_a_body_of_brax_learns_from_its_own_last_state():
    pytest.importorskip("brax")
    env, traced = body("hopper"), []

    @jax.jit
    def play(key, places):
        traced.append(1)
        act = lambda key, seen: actions.uniform(env.actions, key)  # noqa: E731
        return rollouts.rollout(env, act, key, places, 50)

    places = rollouts.start(env, KEY, 4)
    parts = []
    for _ in range(4):
        places, part = play(KEY, places)
        parts.append(part)
    assert len(traced) == 1
    steps = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
    assert steps.ended.any()  # bodies that move at random fall
    speed = np.corrcoef(steps.reward[~steps.reset], steps.after[~steps.reset][:, 5])[0, 1]
    assert speed > 0.9  # what the reward pays for: the speed ahead, among what is observed
    reward, policy, shown = learned(dataclasses.replace(env, horizon=20), **SMALL)
    problem, method = irl.problem(policy, episodes=2), irl.method(6)
    state = method.init(problem, reward.start(KEY), policy.start(KEY, width=8))
    data = irl.data(shown, policy)
    state, _ = bl.run(problem, method, state, data=data, key=KEY, steps=2)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((state.x, state.y)))


@pytest.mark.slow
def test_random_search_finds_a_linear_policy():
    env = Pendulum(actions=Box(1), horizon=60)
    none = worth(env, lambda key, seen: jnp.zeros(1))
    found = search(env, KEY, steps=20, spread=0.3, step_size=0.3, bonus=0.0)
    assert worth(env, found) > none + 20
