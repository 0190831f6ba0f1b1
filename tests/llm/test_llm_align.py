"""Reward learning as a bilevel problem: its hypergradient, its fixed points, what it recovers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from benchmarks import alignment, drifting
from bilevel.apps.llm.methods.aihf import AIHF, IRL, Finish, Rounds
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.reward_learning import Draw, problem
from bilevel.apps.llm.methods.task import Task, Weights, by_counts, data
from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policies.policy import Preferences, generate
from bilevel.apps.llm.policy_steps.exact import ExactGradient, Mirror
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut, Moving
from bilevel.apps.llm.rewards import losses
from bilevel.apps.llm.rewards.reward import Normalised, Shifted, moments
from bilevel.updates import FromOptax

S, A = 2, 4
POLICY = tiny.bandit(S, A)
REWARD = tiny.FreeRewards(POLICY)
SHARES = jnp.array([[8, 6, 4, 2], [1, 5, 5, 9]])  # of 20: what the demonstrators do
EXPERT = jnp.log(SHARES / 20)


def rows(prompts, actions):
    return POLICY.response(jnp.asarray(prompts), jnp.asarray(actions))


def logits(seed: int):
    return jax.random.normal(jax.random.key(seed), (S, A))


def demonstrations():
    prompts, actions = jnp.repeat(jnp.arange(S), A), jnp.tile(jnp.arange(A), S)
    counts = SHARES.ravel()
    total = int(counts.sum())
    return rows(*(jnp.repeat(a, counts, total_repeat_length=total) for a in (prompts, actions)))


def preferences():
    return Preferences(
        rows([0, 0, 1, 1, 1], [0, 1, 3, 2, 1]), rows([0, 0, 1, 1, 1], [1, 3, 0, 0, 2])
    )


def task(beta: float = 0.5, **kept) -> Task:
    feedback = {"demonstrations": demonstrations(), "preferences": preferences()} | kept
    return Task(POLICY, logits(0), beta, REWARD, **feedback)


def distance(log_p, log_q) -> float:
    """Total variation, at the worse prompt."""
    return float((jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)).sum(axis=1) / 2).max())


# --- the hypergradient -------------------------------------------------------------------------


def hyper_objective(given: Task, posed, batch):
    """`x -> f(x, π_x)` with the lower solution in closed form."""
    reference = POLICY.log_table(given.reference)
    return lambda x: posed.upper(x, tables.optimum(reference, x, given.beta), batch.upper)


def first(given: Task, **options):
    feed = data(given, **options).feed(jax.random.key(0), bl.Draws(1, 1))
    return feed.batch(jnp.int32(0))


def test_the_contrast_is_the_hypergradient():
    """Against automatic differentiation through the closed-form lower solution."""
    given, x = task(), logits(1)
    for weights in (Weights(1.0, 0.0), Weights(0.3, 0.7)):
        posed, batch = problem(given, Mirror(), weights=weights, decay=0.1), first(given)
        y = tables.optimum(POLICY.log_table(given.reference), x, given.beta)
        expected = jax.jit(jax.grad(hyper_objective(given, posed, batch)))(x)
        found = jax.jit(posed.hypergradient.__call__)(x, y, batch)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_drawn_responses_give_it_without_bias():
    given, x, n = task(), logits(1), 4000
    posed, batch = problem(given, Mirror(), negatives=Draw(2)), first(given)
    y = tables.optimum(POLICY.log_table(given.reference), x, given.beta)
    expected = jax.jit(jax.grad(hyper_objective(given, posed, batch)))(x)

    def one(key):
        return posed.hypergradient(x, y, batch._replace(lower=batch.lower._replace(key=key)))

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), n))
    error = np.abs(found.mean(axis=0) - expected)
    assert (error < 5 * found.std(axis=0) / np.sqrt(n) + 1e-12).all()
    assert np.abs(expected).max() > 0.1


def test_a_generic_penalty_method_goes_the_same_way():
    """F2SA knows the two losses alone, and finds the explicit contrast up to O(1/penalty)."""
    given = eqx.tree_at(lambda t: t.reference, task(), 0.3 * logits(5))
    x0, feed = 0.3 * logits(1), data(given)
    posed = problem(given, Mirror())
    plain = bl.Problem(posed.upper, posed.lower)
    y = tables.optimum(POLICY.log_table(given.reference), x0, given.beta)
    explicit = posed.hypergradient(x0, y, first(given))

    def error(penalty):
        method = bl.methods.F2SA(1.0, 8.0, 8.0, penalty=penalty, lower_steps=3000)
        state = method.init(plain, x0, y)
        state, _ = bl.run(plain, method, state, data=feed, steps=1)
        direction = x0 - state.x
        return jnp.linalg.norm(direction - explicit) / jnp.linalg.norm(explicit)

    coarse, fine = error(400.0), error(1600.0)
    assert fine < 5e-3
    assert 3.5 < coarse / fine < 4.5


class Opaque(tiny.AbstractPolicy):
    """The same policy, not known to be enumerable."""

    inner: tiny.Enumerated

    def token_logprobs(self, y, responses):
        return self.inner.token_logprobs(y, responses)

    def sample(self, y, prompts, key, *, temperature=1.0):
        return self.inner.sample(y, prompts, key, temperature=temperature)


def test_the_lower_loss_on_drawn_responses_has_unbiased_value_and_slope():
    given, x, y, n = task(), logits(1), logits(2), 4000
    hidden = eqx.tree_at(lambda t: t.policy, given, Opaque(POLICY))
    exact, drawn = problem(given, Mirror()).lower, problem(hidden, LeaveOneOut()).lower
    batch = first(given).lower._replace(prompts=jnp.arange(S))

    def one(key):
        return jax.value_and_grad(drawn, argnums=1)(x, y, batch._replace(key=key))

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), n))
    expected = jax.jit(jax.value_and_grad(exact, argnums=1))(x, y, batch)
    for samples, mean in zip(found, expected, strict=True):
        error = np.abs(samples.mean(axis=0) - mean)
        assert (error < 5 * samples.std(axis=0) / np.sqrt(n)).all()


# --- fixed points: spec 2.2 ----------------------------------------------------------------------


def single_loop(beta, contrast, rate, step_size, steps, anchor=None):
    given = task(beta, preferences=None)
    anchored = {} if anchor is None else {"anchor": anchor}
    how = IRL(Mirror(rate), x_update=step_size, contrast=contrast, **anchored)
    found = align(given, how, steps=steps, reward=jnp.zeros((S, A)), log_every=steps)
    return given, POLICY.log_table(found.policy)


def test_the_linear_contrast_reaches_the_demonstrators():
    _, found = single_loop(0.5, losses.Linear(), 0.2, 0.2, 2000)
    assert distance(found, EXPERT) < 1e-6


@pytest.mark.slow(unless=lambda beta: beta == 0.05)
@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_the_logistic_contrast_rests_at_a_geometric_mixture(beta):
    """With small steps on both levels also where whole phases would diverge, beta < 1."""
    size = 0.02 if beta < 0.1 else 0.1
    given, found = single_loop(beta, losses.Logistic(), size, size, 20_000)
    reference = POLICY.log_table(given.reference)
    mixture = jax.nn.log_softmax((beta * reference + EXPERT) / (1 + beta))
    assert distance(found, mixture) < 3e-5
    assert distance(found, EXPERT) > 1e-2


def centred(table):
    return table - table.mean(axis=1, keepdims=True)


@pytest.mark.slow(unless=lambda beta: beta != 1.0)
@pytest.mark.parametrize("beta", [0.4, 1.0, 2.0])
def test_a_round_with_a_moving_reference_multiplies_the_log_error(beta):
    """By `1 − 1/beta`: converges beyond one half only, at once for 1."""
    given = eqx.tree_at(lambda t: t.reference, task(beta, preferences=None), 0.3 * logits(5))
    how = IRL(
        Mirror(),
        x_update=8.0,
        contrast=losses.Logistic(),
        anchor=Moving(),
        rounds=Rounds(1, 1, stored=False),
    )
    start = 0.3 * logits(5) + EXPERT  # near the demonstrators
    found = align(given, how, steps=3000, reward=jnp.zeros((S, A)), policy=start)
    before, after = (centred(POLICY.log_table(y) - EXPERT) for y in (start, found.policy))
    np.testing.assert_allclose(after, (1 - 1 / beta) * before, atol=1e-4)


@pytest.mark.slow(unless=lambda beta: beta == 0.5)
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_round_with_a_fixed_reference_multiplies_the_error_by_minus_one_over_beta(beta):
    given = eqx.tree_at(lambda t: t.reference, task(beta, preferences=None), 0.3 * logits(5))
    reference = POLICY.log_table(given.reference)
    mixture = jax.nn.log_softmax((beta * reference + EXPERT) / (1 + beta))
    start = mixture + 0.2 * logits(6)
    how = IRL(Mirror(), x_update=8.0, contrast=losses.Logistic(), rounds=Rounds(1, 1, stored=False))
    found = align(given, how, steps=3000, reward=jnp.zeros((S, A)), policy=start)
    before, after = (centred(POLICY.log_table(y) - mixture) for y in (start, found.policy))
    np.testing.assert_allclose(after, -before / beta, atol=1e-4)


# --- AIHF on a bandit: spec 3.4 -----------------------------------------------------------------

ACTIONS = 8
BANDIT = tiny.bandit(1, ACTIONS)


def bandit_task(key, shown: int, judged: int) -> tuple[Task, jax.Array]:
    keys = jax.random.split(key, 5)
    rewards, reference = jax.random.normal(keys[0], (1, ACTIONS)), jnp.zeros((1, ACTIONS))
    expert = tables.optimum(BANDIT.log_table(reference), rewards, 0.5)
    demos = tiny.draw(BANDIT, expert, jnp.zeros(shown, int), keys[1])
    a, b = (
        tiny.draw(BANDIT, BANDIT.log_table(reference), jnp.zeros(judged, int), k) for k in keys[2:4]
    )
    pairs = tiny.label(rewards, BANDIT, a, b, keys[4])
    return Task(BANDIT, reference, 0.5, tiny.FreeRewards(BANDIT), demos, pairs), expert


def divergences(shown: int, judged: int, repeats: int = 40) -> dict[str, float]:
    """Mean KL(expert ‖ policy) from demonstrations, preferences, and both, by counts."""
    method = bl.methods.TTSA(FromOptax(optax.adam, 0.05))

    def one(key, weights):
        given, expert = bandit_task(key, shown, judged)
        total = sum(jnp.where(w > 0, n, 0) for w, n in zip(weights, (shown, judged), strict=True))
        posed = problem(given, Mirror(), weights=weights, decay=1e-3 / total)
        start = jnp.zeros((1, ACTIONS))
        state = method.init(posed, start, start)
        state, _ = bl.run(posed, method, state, data=data(given), steps=1000)
        return tables.kl(expert, BANDIT.log_table(state.y))

    mixed = by_counts(bandit_task(jax.random.key(0), shown, judged)[0])
    kinds = {"demo": Weights(1.0, 0.0), "pref": Weights(0.0, 1.0), "joint": mixed}
    weights = Weights(*(jnp.array(w) for w in zip(*kinds.values(), strict=True)))
    keys = jax.random.split(jax.random.key(1), repeats)
    over = jax.vmap(jax.vmap(one, (0, None)), (None, 0))
    return dict(zip(kinds, jax.jit(over)(keys, weights).mean(axis=1).tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shown", "judged"), [(50, 200), (50, 50), (200, 50), (20, 1000), (1000, 20)]
)
def test_both_kinds_of_feedback_are_better_than_either(shown, judged):
    found = divergences(shown, judged)
    assert found["joint"] < min(found["demo"], found["pref"]), found


def test_weights_by_counts():
    assert by_counts(task()) == (40 / 45, 5 / 45)
    assert by_counts(task(preferences=None)) == (1, 0)
    assert by_counts(task(demonstrations=None)) == (0, 1)
    with pytest.raises(ValueError, match="no feedback"):
        by_counts(task(demonstrations=None, preferences=None))


# --- the enumerated language model: spec 2.6 ------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return tiny.world(0, vocabulary=4, length=3, prompts=4, demonstrations=150, preferences=150)


def tb2(world, how, steps, **options):
    given = Task(
        world.policy, world.reference, world.beta, tiny.pair_rewards, world.demonstrations,
        world.preferences,
    )  # fmt: skip
    v = world.policy.vocabulary
    metrics = {"J": lambda x, y: world.reached(y)}
    return align(given, how, steps=steps, reward=jnp.zeros((2, v, v)), metrics=metrics, **options)


STEP = ExactGradient(FromOptax(optax.adam, 3e-3), 5)
X_UPDATE = FromOptax(optax.adam, 0.05)


@pytest.mark.slow
def test_a_small_language_model_is_aligned(world):
    """A piece of the benchmark: the single loop reaches nearly the optimum, and beats logistic."""
    linear = tb2(world, IRL(STEP, x_update=X_UPDATE, decay=1e-3), 120, log_every=60)
    reached = linear.history["J"]
    assert reached[0] == 0
    assert reached[-1] > 0.9
    logistic = IRL(STEP, x_update=X_UPDATE, decay=1e-3, contrast=losses.Logistic())
    assert tb2(world, logistic, 120, log_every=60).history["J"][-1] < reached[-1]
    upper = linear.history["upper"]
    assert upper[-1] < upper[1]
    assert world.accuracy(tiny.pair_rewards, linear.reward) > 0.75


@pytest.mark.slow
def test_sampled_responses_align_it_too(world):
    step = LeaveOneOut(FromOptax(optax.adam, 5e-3), samples=4, steps=2)
    how = AIHF(step, x_update=X_UPDATE, decay=1e-3, negatives=Draw(2))
    found = tb2(world, how, 250, batch_size=64, prompts=64, log_every=250)
    assert found.history["J"][-1] > 0.7


@pytest.mark.slow
def test_the_ways_to_align_rank_as_recorded():
    """The benchmark itself: three seeds, every way."""
    rows = alignment.found(told=lambda line: None)
    assert alignment.in_order(rows), alignment.table(rows)
    for row in rows[:3]:
        assert abs(alignment.mean(row) - row.recorded) < 0.03, row


def test_the_kept_results_rank_as_recorded():
    rows = alignment.kept()
    assert alignment.in_order(rows)
    assert [row.name for row in rows] == [way.name for way in alignment.WAYS]
    for row in rows[:3]:
        assert abs(alignment.mean(row) - row.recorded) < 0.03, row


# --- feedback that drifts: spec 10 ---------------------------------------------------------------


def test_a_single_loop_learns_from_what_it_says_itself():
    """Without drift and with decreasing steps the regret vanishes."""
    keys = jax.random.split(jax.random.key(1), 4)
    steps = bl.schedules.Polynomial(50.0, 1.0, 100.0)

    @jax.jit
    def follow(keys):
        return jax.vmap(lambda key: drifting.single_loop(key, drift=0.0, update=steps))(keys)

    regrets = follow(keys).mean(axis=0)
    assert regrets[:50].mean() > 0.2
    assert regrets[-500:].mean() < 0.01


def test_the_kept_results_of_drifting_feedback_rank_as_recorded():
    rows = drifting.kept()
    assert drifting.in_order(rows)
    assert [row.name for row in rows] == [way.name for way in drifting.WAYS]
    for row in rows:
        assert abs(np.mean(row.regret) - row.recorded) < 0.2, row


@pytest.mark.slow
def test_following_is_better_than_batches_and_those_than_standing_still():
    assert drifting.in_order(drifting.found())


@pytest.mark.slow
def test_stored_rounds_replay_earlier_pairs(monkeypatch):
    """From the third round on, all earlier rounds but the first."""
    from bilevel.apps.llm.methods import aihf as module

    seen = []
    real = module.data

    def data(task, **options):
        seen.append(options["pairs"])
        return real(task, **options)

    monkeypatch.setattr(module, "data", data)
    how = AIHF(Mirror(0.1), x_update=0.1, rounds=Rounds(4, 1))
    found = align(task(), how, steps=2, reward=jnp.zeros((S, A)))
    assert [len(shown.tokens) // 40 for shown, _ in seen] == [1, 1, 2, 3]
    assert len(found.results) == 8
    third, fourth = seen[2][1].tokens, seen[3][1].tokens
    assert jnp.array_equal(third[40:], seen[1][1].tokens)  # the second round's, again
    assert jnp.array_equal(fourth[40:80], seen[1][1].tokens)
    assert jnp.array_equal(fourth[80:], third[:40])


def test_normalised_rewards_have_the_scale_of_the_reference():
    """A policy step that sees them does not see the scale of the reward."""
    given, x = task(), logits(1)
    said = generate(POLICY, given.reference, jnp.arange(S), jax.random.key(0))
    seen = Normalised(REWARD, said)
    for scale in (1.0, 10.0):
        values = seen(scale * x + 3, said)
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-12)
        np.testing.assert_allclose(values, seen(x, said), atol=1e-12)
    fixed = Shifted(REWARD, moments(REWARD, x, said))
    np.testing.assert_allclose(fixed(x, said), seen(x, said), atol=1e-12)
    np.testing.assert_allclose(fixed(2 * x, said).std(), 2, rtol=1e-12)
    how = IRL(Mirror(), x_update=0.0, normalise=S)
    runs = [align(given, how, steps=1, reward=scale * x) for scale in (1.0, 10.0)]
    np.testing.assert_allclose(runs[0].policy, runs[1].policy, atol=1e-9)


def test_the_last_steps_have_a_beta_of_their_own_on_the_reward_of_the_loop():
    given, options = task(0.5), {"steps": 20, "reward": jnp.zeros((S, A)), "key": jax.random.key(0)}
    loop = align(given, IRL(Mirror(), x_update=0.5), **options)
    found = align(given, IRL(Mirror(), x_update=0.5, finish=Finish(2, 0.2)), **options)
    np.testing.assert_array_equal(found.reward, loop.reward)
    np.testing.assert_array_equal(found.history["step"], [0, 20, 22])
    first, last = (result.history["gradients"][-1] for result in found.results)
    np.testing.assert_array_equal(found.history["gradients"], [0, first, first + last])
    best = tables.optimum(POLICY.log_table(given.reference), loop.reward, 0.2)
    np.testing.assert_allclose(POLICY.log_table(found.policy), best, atol=1e-12)
    with pytest.raises(ValueError, match="rounds and finish"):
        IRL(Mirror(), rounds=Rounds(1, 1), finish=Finish(2, 0.2))


def test_a_reward_must_have_a_start():
    with pytest.raises(ValueError, match="the reward has no start"):
        align(task(), IRL(Mirror()), steps=1)
    with pytest.raises(ValueError, match="no reward to learn"):
        problem(eqx.tree_at(lambda t: t.reward, task(), None), Mirror())


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tmp_path):
    given, how = task(), AIHF(Mirror(0.2), x_update=0.1, negatives=Draw(2))
    start = jnp.zeros((S, A))
    whole = align(given, how, steps=20, reward=start, batch_size=4, prompts=4)
    for steps in (10, 20):
        parts = align(
            given, how, steps=steps, reward=start, batch_size=4, prompts=4, checkpoint=tmp_path
        )
    assert jnp.array_equal(whole.reward, parts.reward)
    assert jnp.array_equal(whole.policy, parts.policy)
