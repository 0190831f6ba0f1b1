"""Baselines against their population optima, on bandits whose populations can be listed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.apps.llm.methods.aihf import AIHF, Rounds
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.direct import AIHFDPO, DPO, IPO
from bilevel.apps.llm.methods.rlhf import RLHF, RewardModel
from bilevel.apps.llm.methods.self_play import SPIN, SelfPlayAIHF
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task, Weights
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policies.policy import Preferences, Responses, log_ratio, referred
from bilevel.apps.llm.policy_steps.exact import Mirror
from bilevel.apps.llm.rewards import losses
from bilevel.driver import Outcome
from bilevel.updates import FromOptax

# Rewards are logarithms of whole numbers, so that populations of labels are whole numbers too.
LEVELS = [1, 2, 3]
TRUE = jnp.log(jnp.array([LEVELS], float))
POLICY = tiny.bandit(1, 3)
REWARD = tiny.FreeRewards(POLICY)
REFERENCE = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
EXPERT = jnp.log(jnp.array([[0.2, 0.3, 0.5]]))
BETA = 0.5


def rows(actions):
    return POLICY.response(jnp.zeros(len(actions), int), jnp.asarray(actions))


def population():
    """All pairs from the reference (quarters), labels in true proportion (sixtieths)."""
    better, worse = [], []
    shares = [2, 1, 1]
    for a in range(3):
        for b in range(3):
            total = LEVELS[a] + LEVELS[b]
            copies = shares[a] * shares[b] * 60 // total
            for won, lost, level in ((a, b, LEVELS[a]), (b, a, LEVELS[b])):
                better += [won] * (copies * level)
                worse += [lost] * (copies * level)
    return Preferences(rows(better), rows(worse))


def demonstrations():
    return rows([0] * 2 + [1] * 3 + [2] * 5)


def task(**feedback) -> Task:
    return Task(POLICY, REFERENCE, BETA, REWARD, **feedback)


def trained(how, given, steps=1500, **options):
    return align(given, how, steps=steps, log_every=steps, **options)


def log_table(found):
    return POLICY.log_table(found.policy)


def test_sft_is_the_demonstrators():
    found = trained(SFT(1.0), task(demonstrations=demonstrations()))
    np.testing.assert_allclose(log_table(found), EXPERT, atol=1e-6)
    assert found.reward is None


def test_a_reward_model_finds_the_reward_up_to_a_constant():
    found = trained(RewardModel(4.0), task(preferences=population()), reward=jnp.zeros((1, 3)))
    error = found.reward - TRUE
    np.testing.assert_allclose(error - error.mean(), 0, atol=1e-8)
    assert jnp.array_equal(found.policy, REFERENCE)


def test_dpo_and_staged_rlhf_reach_the_same_policy():
    given = task(preferences=population())
    best = tables.optimum(REFERENCE, TRUE, BETA)
    staged = RLHF(Mirror(), 1, RewardModel(4.0))
    staged = trained(staged, given, reward=jnp.zeros((1, 3)))
    direct = trained(DPO(8.0), given)
    np.testing.assert_allclose(log_table(staged), best, atol=1e-7)
    np.testing.assert_allclose(log_table(direct), best, atol=1e-7)


def test_ipo_counts_how_often_an_answer_wins():
    tau = 0.7
    wins = jnp.array([[sum(w * a / (a + b) for w, b in zip((0.5, 0.25, 0.25), LEVELS, strict=True))
                       for a in LEVELS]])  # fmt: skip
    expected = tables.optimum(REFERENCE, wins, tau)
    found = trained(IPO(tau, per_token=False, update=0.3), task(preferences=population()))
    np.testing.assert_allclose(log_table(found), expected, atol=1e-7)


@pytest.mark.slow(unless=lambda strength: strength == 0.4)
@pytest.mark.parametrize("strength", [0.4, 2.0])
def test_a_round_of_spin_multiplies_the_log_error(strength, monkeypatch):
    """By `1 − 1/λ`: with all pairs of a demonstration and an answer, in their proportions."""
    from bilevel.apps.llm.methods import self_play

    demos = [0] * 2 + [1] * 3 + [2] * 5
    said = [0, 0, 1, 2]  # the reference, in quarters
    given = task(demonstrations=rows([d for d in demos for _ in said]))
    monkeypatch.setattr(self_play, "generate", lambda *_: rows(said * len(demos)))
    found = trained(SPIN(4 / strength**2, strength), given, steps=3000)
    before, after = (table - EXPERT for table in (REFERENCE, log_table(found)))
    after = after - after.mean()
    np.testing.assert_allclose(after, (1 - 1 / strength) * (before - before.mean()), atol=1e-6)


@pytest.mark.slow
def test_rounds_of_spin_move_the_opponent():
    given = task(demonstrations=demonstrations())
    one = trained(SPIN(1.0, 1.0, rounds=1), given, steps=5)
    two = trained(SPIN(1.0, 1.0, rounds=2, replay=True), given, steps=5)
    assert len(two.results) == 2
    first = two.results[1].history["upper"][-1]
    assert first <= np.log(2)  # of the second round: relative to its own start
    assert not jnp.array_equal(one.policy, two.policy)


ROUNDS = Rounds(2, 4, stored=True)
PHASED = {
    "rlhf": RLHF(Mirror(0.2), 4, RewardModel(1.0)),
    "spin": SPIN(1.0, 1.0, rounds=2, replay=True),
    "self-play": SelfPlayAIHF(1.0, rounds=2),
    "rounds": AIHF(Mirror(0.2), x_update=0.1, rounds=ROUNDS),
}
KILLED = [("rlhf", (2,)), *((name, (2, 4)) for name in PHASED)]


@pytest.mark.slow(unless=lambda at: len(at) == 1)
@pytest.mark.parametrize(("name", "at"), KILLED)
def test_a_run_killed_in_every_phase_resumes_bit_for_bit(name, at, tmp_path):
    how = PHASED[name]
    given = task(demonstrations=demonstrations(), preferences=population())
    settings = {"steps": 4, "log_every": 2, "batch_size": 8, "reward": jnp.zeros((1, 3))}
    whole, killed = align(given, how, **settings), []

    def kill(step, state, row):
        return row["step"] in at  # of the phase

    for _ in range(len(whole.results) * len(at)):
        found = align(given, how, **settings, checkpoint=tmp_path, callbacks=[kill])
        assert found.results[-1].status.outcome is Outcome.STOPPED
        killed.append((len(found.results), found.results[-1].history["step"][-1]))
    phases = range(1, len(whole.results) + 1)
    assert killed == [(phase, step) for phase in phases for step in at]
    ended = align(given, how, **settings, checkpoint=tmp_path)
    assert [result.stats.steps for result in ended.results][:-1] == [0] * (len(phases) - 1)
    assert ended.ended
    for a, b in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(ended[:2]), strict=True):
        assert jnp.array_equal(a, b)
    for one, other in zip(whole.results, ended.results, strict=True):
        for column in one.history.keys() - {"seconds"}:
            np.testing.assert_array_equal(one.history[column], other.history[column])


@pytest.mark.slow
def test_another_first_phase_has_another_second(tmp_path):
    """What followed another reward is not taken up."""
    how, given = PHASED["rlhf"], task(preferences=population())
    settings = {"reward": jnp.zeros((1, 3)), "log_every": 2}
    align(given, how, steps=2, checkpoint=tmp_path, **settings)
    longer = align(given, how, steps=4, checkpoint=tmp_path, **settings)
    assert [result.stats.steps for result in longer.results] == [2, 4]
    assert jnp.array_equal(longer.policy, align(given, how, steps=4, **settings).policy)


@pytest.mark.slow
def test_aihf_dpo_joins_both_likelihoods():
    """With w1 = 1 it is SFT, with w2 = 1 DPO; the joint optimum has a zero sum of slopes."""
    given = task(demonstrations=demonstrations(), preferences=population())
    for weights, other in ((Weights(1.0, 0.0), SFT(1.0)), (Weights(0.0, 1.0), DPO(1.0))):
        joint = trained(AIHFDPO(1.0, weights), given, steps=20)
        alone = trained(other, given, steps=20)
        np.testing.assert_allclose(joint.policy, alone.policy, atol=1e-12)
    joint = trained(AIHFDPO(1.0, Weights(0.5, 0.5)), given)

    def loss(y):
        pairs = [referred(POLICY, REFERENCE, r) for r in given.preferences]
        chosen, rejected = (log_ratio(POLICY, y, r) for r in pairs)
        sft = -POLICY.logprob(y, given.demonstrations).mean()
        return sft / 2 + losses.dpo(chosen, rejected, BETA) / 2

    assert jnp.abs(jax.grad(loss)(joint.policy)).max() < 1e-6
    assert jnp.abs(jax.grad(loss)(REFERENCE)).max() > 1e-2


def test_self_play_aihf_starts_at_log_two():
    given = task(demonstrations=demonstrations(), preferences=population())
    how = SelfPlayAIHF(0.0, rounds=2)
    found = trained(how, given, steps=1)
    for result in found.results:
        np.testing.assert_allclose(result.history["upper"][-1], np.log(2), rtol=1e-12)


# --- the losses -------------------------------------------------------------------------------


def test_equal_ratios_cost_log_two():
    ratio = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(losses.dpo(ratio, ratio, 0.1), np.log(2), rtol=1e-15)
    np.testing.assert_allclose(losses.spin(ratio, ratio, 0.1), np.log(2), rtol=1e-15)


def test_label_smoothing():
    u = np.array([1.5, -0.25])
    expected = (0.9 * np.log1p(np.exp(-u)) + 0.1 * np.log1p(np.exp(u))).mean()
    np.testing.assert_allclose(losses.preference(jnp.asarray(u), jnp.zeros(2), 0.1), expected)


def test_contrasts():
    demonstrated, own = jnp.array([1.0, 2.0]), jnp.array([[0.0, 3.0], [1.0, 1.0]])
    weights = jnp.array([[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(
        losses.Linear()(demonstrated, own, weights, 0.5), ((2.25 - 1) + (1 - 2)) / 2 / 0.5
    )
    lost = np.log1p(np.exp(-np.array([[1.0, -2.0], [1.0, 1.0]])))
    expected = (lost * np.asarray(weights)).sum(axis=1).mean()
    np.testing.assert_allclose(losses.Logistic()(demonstrated, own, weights, 0.5), expected)


@pytest.mark.slow
def test_ipo_per_token_divides_by_the_length():
    network = tiny.PrefixNetwork(2, 2, 1)
    policy, reference = tiny.Enumerated(network, 2, 2, 1), network.init(jax.random.key(0), 4)
    rejected = policy.response(jnp.zeros(2, int), jnp.array([0, 3]))
    chosen = policy.response(jnp.zeros(2, int), jnp.array([1, 2]))
    short = chosen._replace(mask=chosen.mask.at[:, 1].set(False))
    given = Task(policy, reference, 0.5, preferences=Preferences(short, rejected))
    start = network.init(jax.random.key(1), 4)
    measured = {}
    for per_token in (False, True):
        how = IPO(1.0, per_token, update=0.0)
        measured[per_token] = trained(how, given, steps=1, policy=start).history["upper"][-1]
    won, lost = (
        np.asarray(policy.logprob(start, rows) - policy.logprob(reference, rows))
        for rows in (short, rejected)
    )
    np.testing.assert_allclose(measured[False], ((won - lost - 0.5) ** 2).mean())
    np.testing.assert_allclose(measured[True], ((won - lost / 2 - 0.5) ** 2).mean())
    assert abs(measured[True] - measured[False]) > 1e-3


def test_token_preference_starts_where_answers_part():
    def answer(tokens, length):
        mask = jnp.arange(4)[None] < length
        return Responses(jnp.zeros(1, int), jnp.array([tokens]), mask)

    pair = answer([5, 1, 2, 0], 3), answer([5, 1, 3, 4], 4)
    assert losses.parted(*pair).tolist() == [[False, False, True, True]]
    chosen, rejected = jnp.array([[9.0, 9.0, 1.0, 2.0]]), jnp.array([[0.0, 0.0, 0.5, 0.0]])
    expected = np.log1p(np.exp(-np.array([0.5, 2.0]))).mean()
    np.testing.assert_allclose(losses.token_preference(chosen, rejected, pair), expected)


def test_reference_free_dpo_leaves_the_reference_out():
    start = jnp.array([[1.0, 0.0, -1.0]])
    given = task(preferences=Preferences(rows([0]), rows([2])))
    found = trained(DPO(0.0, reference_free=True), given, steps=1, policy=start)
    np.testing.assert_allclose(found.history["upper"][-1], np.log1p(np.exp(-BETA * 2.0)))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no demonstrations"):
        align(task(preferences=population()), SFT(), steps=1)
    with pytest.raises(ValueError, match="no preferences"):
        align(task(demonstrations=demonstrations()), DPO(), steps=1)
    with pytest.raises(ValueError, match="no reference log-probabilities"):
        log_ratio(POLICY, REFERENCE, demonstrations())


@pytest.mark.slow
def test_any_optax_update_will_do():
    how = SFT(FromOptax(optax.adam, 0.05))
    found = trained(how, task(demonstrations=demonstrations()), steps=500)
    np.testing.assert_allclose(log_table(found), EXPERT, atol=1e-3)
