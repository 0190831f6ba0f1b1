"""Policy steps: unbiased where they say so, blind to functions of the prompt, at the optimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.apps.llm.policies import enumerated as tiny
from bilevel.apps.llm.policies import tables
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses
from bilevel.apps.llm.policy_steps import policy_step, ppo
from bilevel.apps.llm.policy_steps.adaptive import Adaptive, divergence
from bilevel.apps.llm.policy_steps.exact import ExactGradient, Mirror
from bilevel.apps.llm.policy_steps.policy_step import (
    GRPO,
    Fixed,
    Goal,
    LeaveOneOut,
    LowerStep,
    Moving,
    Prompts,
    SquaredAdvantage,
)
from bilevel.apps.llm.policy_steps.ppo import PPO, Critic
from bilevel.updates import FromOptax

S, A, BETA = 2, 4, 0.5
POLICY = tiny.bandit(S, A)
REWARD = tiny.FreeRewards(POLICY)


def logits(seed: int):
    return jax.random.normal(jax.random.key(seed), (S, A))


@pytest.fixture(scope="module")
def goal():
    return Goal(POLICY, REWARD, logits(0), BETA)


FIXED = Fixed()


def best(x, goal):
    return tables.optimum(POLICY.log_table(goal.reference), x, goal.beta)


def many(step, goal, x, y, *, calls: int, each: int = 8, anchor=FIXED):
    """The policy after some calls on `each` answers to every prompt's copies."""
    lower, prompts = LowerStep(goal, step, anchor), jnp.tile(jnp.arange(S), each)

    return run(lower, x, y, prompts, jax.random.split(jax.random.key(3), calls))


@eqx.filter_jit
def run(lower, x, y, prompts, keys):
    def one(carry, key):
        y, memory = carry
        return lower(x, y, memory, Prompts(prompts, key)), None

    (y, _), _ = jax.lax.scan(one, (y, lower.init(x, y)), keys)
    return y


def test_mirror_step_is_the_optimum_at_rate_one(goal):
    x, y = logits(1), logits(2)
    found = POLICY.log_table(many(Mirror(), goal, x, y, calls=1))
    np.testing.assert_allclose(found, best(x, goal), atol=1e-12)
    half = many(Mirror(0.5), goal, x, y, calls=1)
    mixed = jax.nn.log_softmax((POLICY.log_table(y) + best(x, goal)) / 2)
    np.testing.assert_allclose(POLICY.log_table(half), mixed, atol=1e-12)


def test_mirror_refuses_a_network():
    network = tiny.PrefixNetwork(2, 2, 2)
    policy = tiny.Enumerated(network, 2, 2, 2)
    goal = Goal(policy, tiny.pair_rewards, network, 0.5)
    with pytest.raises(TypeError, match="ExactGradient"):
        Mirror().init(goal, None, None)


def test_a_moving_reference_adds_up_rewards(goal):
    x, y = logits(1), logits(2)
    found = many(Mirror(), goal, x, y, calls=3, anchor=Moving(1))
    expected = jax.nn.log_softmax(POLICY.log_table(y) + 3 * x / BETA)
    np.testing.assert_allclose(POLICY.log_table(found), expected, atol=1e-10)
    slower = many(Mirror(), goal, x, y, calls=4, anchor=Moving(2))
    expected = jax.nn.log_softmax(POLICY.log_table(y) + 2 * x / BETA)
    np.testing.assert_allclose(POLICY.log_table(slower), expected, atol=1e-10)


ADAM = FromOptax(optax.adam, 0.03)
STEPS = {
    "exact": (ExactGradient(1.0, 20), 200, 1e-6),
    "leave one out": (LeaveOneOut(ADAM, samples=4), 1500, 0.02),
    "PPO": (PPO(ADAM, whiten=False, epochs=2), 1500, 0.02),
    "GRPO": (GRPO(ADAM, samples=4, epochs=2, scale=False), 1500, 0.02),
    "squared": (SquaredAdvantage(ADAM, samples=4, constant=2.0), 1500, 0.02),
}


@pytest.mark.slow(unless=lambda name: name not in {"PPO", "GRPO", "squared"})
@pytest.mark.parametrize("name", STEPS)
def test_every_step_ends_at_the_optimum(goal, name):
    step, calls, within = STEPS[name]
    x, y = logits(1), goal.reference
    found = POLICY.log_table(many(step, goal, x, y, calls=calls, each=4))
    assert tables.kl(POLICY.log_table(y), best(x, goal)) > 0.4
    assert tables.kl(found, best(x, goal)) < within


def exact_slope(goal, x, y):
    def loss(y):
        log_p, reference = POLICY.log_table(y), POLICY.log_table(goal.reference)
        return -tables.objective(log_p, reference, x, goal.beta)

    return jax.grad(loss)(y)


@pytest.mark.parametrize(
    "step", [LeaveOneOut(samples=2), GRPO(samples=2, scale=False)], ids=["rloo", "grpo"]
)
def test_the_direction_is_unbiased(goal, step):
    """Over both responses to a prompt, all pairs weighed by their probability."""
    x, y, n = logits(1), logits(2), 100_000

    def one(key):
        found = policy_step.drawn(goal, x, y, jnp.arange(S), key, 2)
        return jax.grad(step.loss)(y, goal, found)

    found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=10_000))(
        jax.random.split(jax.random.key(0), n)
    )
    expected = exact_slope(goal, x, y)
    error = np.abs(found.mean(axis=0) - expected)
    assert (error < 5 * found.std(axis=0) / np.sqrt(n)).all()
    assert np.abs(expected).max() > 0.1


class Stay(eqx.Module):
    """A critic that knows one number for each prompt."""

    def __call__(self, values, responses):
        return jnp.broadcast_to(values[responses.prompts][:, None], responses.mask.shape)


SHIFTED = {
    "exact": lambda c: ExactGradient(0.1),
    "mirror": lambda c: Mirror(0.3),
    "leave one out": lambda c: LeaveOneOut(0.1),
    "GRPO": lambda c: GRPO(0.1, samples=4),
    "squared": lambda c: SquaredAdvantage(0.1),
    "PPO": lambda c: PPO(0.1, critic=Critic(Stay(), jnp.ones(S) + c), critic_update=0.1),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_reward_of_the_prompt_changes_nothing(goal, name):
    """Of PPO it changes the baseline only: the critic's values shift with it."""
    x, y, shift = logits(1), logits(2), jnp.array([3.0, -5.0])
    plain = many(SHIFTED[name](jnp.zeros(S)), goal, x, y, calls=2)
    moved = many(SHIFTED[name](shift), goal, x + shift[:, None], y, calls=2)
    assert jnp.abs(plain - y).max() > 1e-3
    change = [POLICY.log_table(v) - POLICY.log_table(y) for v in (plain, moved)]
    np.testing.assert_allclose(*change, atol=1e-6)


# --- several tokens ---------------------------------------------------------------------------


def naive_advantages(rewards, values, gamma, decay):
    n, time = rewards.shape
    values = np.pad(values, ((0, 0), (0, 1)))
    found = np.zeros((n, time))
    for i in range(n):
        for t in range(time):
            for u in range(t, time):
                delta = rewards[i, u] + gamma * values[i, u + 1] - values[i, u]
                found[i, t] += (gamma * decay) ** (u - t) * delta
    return found


def test_generalised_advantages():
    rewards, values = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = ppo.generalised_advantages(jnp.asarray(rewards), jnp.asarray(values), 0.9, 0.8)
    np.testing.assert_allclose(found, naive_advantages(rewards, values, 0.9, 0.8), rtol=1e-10)


def found_rows(mask):
    """Responses of three tokens with given numbers, for the parts of the steps."""
    mask = jnp.asarray(mask)
    old = jnp.where(mask, jnp.array([[-1.0, -2.0, -3.0], [-0.5, -0.25, -0.125]]), 0)
    rows = Responses(jnp.zeros(2, int), jnp.zeros((2, 3), int), mask)
    reference = jnp.where(mask, -1.0, 0.0)
    return policy_step.Drawn(rows, jnp.array([10.0, 20.0]), old, reference, 2)


def test_the_divergence_is_summed_over_tokens(goal):
    rows = found_rows([[True] * 3, [True, True, False]])
    found = policy_step.regularised(goal, rows)
    np.testing.assert_allclose(found, [10 - 0.5 * (0 - 1 - 2), 20 - 0.5 * (0.5 + 0.75)])


def test_ppo_pays_at_the_last_token(goal):
    rows = found_rows([[True] * 3, [True, True, False]])
    rewards = PPO().token_rewards(goal, rows)
    expected = [[0, 0.5, 10 + 1], [-0.25, 20 - 0.375, 0]]
    np.testing.assert_allclose(rewards, expected)
    np.testing.assert_allclose(rewards.sum(axis=1), policy_step.regularised(goal, rows))


def test_whitening_looks_at_the_mask_only():
    mask = jnp.array([[True, True, False], [True, False, False]])
    values = jnp.array([[1.0, 2.0, 100.0], [6.0, -50.0, 70.0]])
    found = ppo.whitened(values, mask)
    expected = (np.array([1.0, 2.0, 6.0]) - 3) / np.std([1.0, 2.0, 6.0])
    np.testing.assert_allclose(found[mask], expected, rtol=1e-6)
    assert (found[~mask] == 0).all()


def test_clipping_takes_the_worse_side():
    log_ratio = jnp.log(jnp.array([[1.5, 0.5, 1.5, 0.5]]))
    advantages = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    found = policy_step.clipped(log_ratio, advantages, 0.2)
    np.testing.assert_allclose(found, [[1.2, 0.5, -1.5, -0.8]])


def test_a_critic_learns_the_return(goal):
    critic = Critic(Stay(), jnp.zeros(S))
    step = PPO(0.0, critic, 0.5, value_weight=1.0, decay=1.0)
    x, y = jnp.broadcast_to(jnp.array([[1.0], [3.0]]), (S, A)), goal.reference
    lower = LowerStep(goal, step)

    @jax.jit
    def one(memory, key):
        return lower(x, y, memory, Prompts(jnp.arange(S), key))[1]

    memory = lower.init(x, y)
    for key in jax.random.split(jax.random.key(0), 20):
        memory = one(memory, key)
    np.testing.assert_allclose(memory.own.critic, [1.0, 3.0], atol=0.05)


def test_one_response_has_no_baseline():
    with pytest.raises(ValueError, match="at least 2"):
        LeaveOneOut(samples=1)


def test_minibatches_must_divide(goal):
    with pytest.raises(ValueError, match="cannot be cut into 3"):
        many(PPO(minibatches=3), goal, logits(1), logits(2), calls=1, each=1)


# --- a divergence to hold ------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.05, 0.6])
def test_an_adaptive_divergence_settles_at_its_target(goal, target):
    """From below and from above; there it is best for the β it has come to."""
    x = logits(1)
    lower = LowerStep(goal, Adaptive(Mirror(0.5), target))
    start = tables.kl(best(x, goal), POLICY.log_table(goal.reference))
    assert abs(start - target) > 0.1

    @eqx.filter_jit
    def after(lower, calls):
        def one(carry, key):
            y, memory = carry
            return lower(x, y, memory, Prompts(jnp.arange(S), key)), None

        start = goal.reference, lower.init(x, goal.reference)
        return jax.lax.scan(one, start, jax.random.split(jax.random.key(0), calls))[0]

    y, memory = after(lower, 400)
    found = tables.kl(POLICY.log_table(y), POLICY.log_table(goal.reference))
    np.testing.assert_allclose(found, target, rtol=1e-3)
    beta = memory.own.beta
    assert (beta > goal.beta) == (start > target)
    expected = tables.optimum(POLICY.log_table(goal.reference), x, beta)
    np.testing.assert_allclose(POLICY.log_table(y), expected, atol=1e-3)


class Opaque(AbstractPolicy):
    """The same policy, not known to be enumerable."""

    def token_logprobs(self, y, responses):
        return POLICY.token_logprobs(y, responses)

    def sample(self, y, prompts, key, *, temperature=1.0):
        return POLICY.sample(y, prompts, key, temperature=temperature)


def test_a_divergence_measured_on_responses_is_unbiased(goal):
    y, prompts = logits(2), jnp.repeat(jnp.arange(S), 2000)
    batch = Prompts(prompts, jax.random.key(0))
    hidden = Goal(Opaque(), REWARD, goal.reference, BETA)
    exact, drawn = (divergence(g, y, batch, 4) for g in (goal, hidden))
    assert 0.1 < exact != drawn
    np.testing.assert_allclose(drawn, exact, atol=0.05)


def test_single_precision_stays(goal):
    x, y = (logits(i).astype(jnp.float32) for i in (1, 2))
    single = eqx.tree_at(lambda g: g.reference, goal, goal.reference.astype(jnp.float32))
    plain = Mirror(), ExactGradient(), LeaveOneOut(), PPO(), GRPO(), SquaredAdvantage()
    for step in (*plain, Adaptive(LeaveOneOut(), 1.0)):
        lower = LowerStep(single, step)
        moved, _ = jax.eval_shape(
            lower, x, y, lower.init(x, y), Prompts(jnp.arange(S), jax.random.key(0))
        )
        assert moved.dtype == jnp.float32
