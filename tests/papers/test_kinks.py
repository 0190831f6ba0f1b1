"""Methods for lower constraints that give the hyper-objective kinks, against reference numbers.

The numbers are those of runs that we trust: they hold up to a factor of three where steps are drawn
at random.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import hypergrad, lower, methods, problems, sets, trees
from bilevel.problem import Batch, Problem

pytest.importorskip("qpax")
EXACT = hypergrad.ActiveSet()


def noisy(case):
    """The upper loss plus `bᵀ(x, y)`: a batch b of noise moves its gradient by b."""

    def upper(x, y, b):
        f = case.problem.upper(x, y, None)
        return f if b is None else f + trees.dot(b, (x, y))

    return Problem(upper, case.problem.lower, lower_set=case.problem.lower_set)


def path(method, problem, x0, y0, steps, *, seed=0, noise=None, q=None):
    """The states and the infos of all steps, on a leading axis."""
    state = method.init(problem, jnp.asarray(x0), y0, key=jax.random.key(seed))
    state = state if q is None else state._replace(q=q)
    states, info = _path(method, problem, state, jax.random.key(100 + seed), noise or 0.0, steps)
    states = {name: value for name, value in states._asdict().items() if name != "key"}
    return SimpleNamespace(**jax.tree.map(np.asarray, states)), jax.tree.map(np.asarray, info)


@jax.jit(static_argnames=("steps",))
def _path(method, problem, state, key, noise, steps):
    def body(state, key):
        b = trees.scale(noise, trees.random_like(key, (state.x, state.y)))
        new, info = method.step(problem, state, Batch(b))
        return new, (new, info)

    return jax.lax.scan(body, state, jax.random.split(key, steps))[1]


def length(x):
    return np.linalg.norm(np.atleast_1d(x))


# --- the oracle with two penalties -------------------------------------------------------------


def test_two_penalties_on_a_coupled_constraint():
    """At x = 2.5 the exact gradient is 2, and the oracle has a closed form."""
    case, x = problems.couple1(), jnp.array(2.5)
    oracle = jax.jit(lambda a: hypergrad.TwoPenalty(a)(case.problem, x, case.y0, Batch()).grad)
    for a, printed in [(0.3, 0.137), (0.1, 1.94e-2), (0.03, 1.80e-3), (0.01, 2.0e-4)]:
        a1, a2 = a**-2, a**-4
        error = 2 * abs(2.5 - 3) * (2 * a1 - 2) / (2 + 2 * a1 + a2)
        np.testing.assert_allclose(abs(oracle(a) - 2), error, atol=1e-8)
        np.testing.assert_allclose(error, printed, rtol=0.02)


def test_two_penalties_on_a_half_plane():
    case = problems.halfplane()
    printed = {  # where the constraint is active, and where it is not
        (1.0, 1.5): [2.9e-2, 3.5e-3, 3.2e-4, 3.5e-5],
        (-0.5, 0.2): [7.8e-2, 9.3e-3, 8.5e-4, 9.4e-5],
    }
    found = jax.jit(lambda oracle, x: oracle(case.problem, x, case.y0, Batch()).grad)
    for x, errors in printed.items():
        exact = case.gradient(jnp.array(x))
        np.testing.assert_allclose(found(EXACT, jnp.array(x)), exact, atol=1e-12)
        for a, error in zip((0.3, 0.1, 0.03, 0.01), errors, strict=True):
            grad = found(hypergrad.TwoPenalty(a), jnp.array(x))
            np.testing.assert_allclose(length(grad - exact), error, rtol=0.02)


def test_two_penalties_by_first_derivatives_alone(monkeypatch):
    """Only the lower solve, which finds the multipliers, uses second derivatives."""
    case, x = problems.couple1(), jnp.array(2.5)
    found = lower.SQP().solve(case.problem, x, case.y0)
    monkeypatch.setattr("bilevel.oracles.dense_hessian", None)
    h = hypergrad.two_penalty(
        case.problem, x, found.y, found.duals, found.active, accuracy=0.1, inner=lower.ToTolerance()
    )
    np.testing.assert_allclose(abs(h.grad - 2), 1.94e-2, rtol=0.02)


def test_an_oracle_needs_what_it_needs():
    case = problems.kink1()
    with pytest.raises(ValueError, match="ToTolerance finds no multipliers"):
        hypergrad.ActiveSet(lower.ToTolerance())(case.problem, case.x0, case.y0, Batch())
    with pytest.raises(ValueError, match="a key is needed"):
        hypergrad.TwoPoint()(case.problem, case.x0, case.y0, Batch())


# --- PIGD ---------------------------------------------------------------------------------------


@pytest.mark.slow(unless=lambda seed: seed == 0)
@pytest.mark.parametrize("seed", [0, 1])
def test_pigd_stays_near_a_kink(seed):
    case = problems.kink1()
    method = methods.PIGD(0.01, 0.05, EXACT)
    states, _ = path(method, case.problem, 2.0, case.y0, 2000, seed=seed)
    assert np.abs(states.x[1000:]).max() <= 0.06


@pytest.mark.parametrize(
    ("a", "last", "tail"), [(0.1, 3.5e-3, 4.4e-3), (0.03, 6e-4, 1.4e-3)], ids=["0.1", "0.03"]
)
def test_pigd_on_a_half_plane(a, last, tail):
    case = problems.halfplane()
    method = methods.PIGD(0.1, 0.01, hypergrad.TwoPenalty(a))
    states, _ = path(method, case.problem, [-2.0, 3.0], case.y0, 300)
    errors = np.linalg.norm(states.x - np.asarray(case.x_star), axis=1)
    assert errors[200:].mean() < 3 * tail
    assert errors[-1] < 3 * max(last, tail)  # it moves about as the tail does


# --- O2NC ---------------------------------------------------------------------------------------


ONLINE = {
    "O2NC": lambda rho, oracle: methods.O2NC(1e-3, 1e-2, 10, oracle),
    "ZerothO2NC": lambda rho, oracle: methods.ZerothO2NC(1e-3, 1e-2, 10, rho),
}


@pytest.mark.parametrize(
    ("name", "mean", "worst"), [("O2NC", 0.032, 0.056), ("ZerothO2NC", 0.046, 0.074)]
)
def test_online_to_nonconvex_on_a_kink(name, mean, worst):
    case = problems.kink1()
    method = ONLINE[name](0.05, EXACT)
    states, _ = path(method, case.problem, 2.0, case.y0, 4000)
    assert np.abs(states.move).max() <= 0.01 + 1e-12
    ends = np.abs(states.mean[9::10][-100:])
    assert ends.mean() < 3 * mean
    assert ends.max() < 3 * worst
    np.testing.assert_allclose(np.diff(states.x), states.move[:-1], atol=1e-14)
    # z lies on the step just taken, so a block stays within 10 steps of its mean
    blocks = np.asarray(states.x)[:4000].reshape(-1, 10)
    assert np.abs(blocks - np.asarray(states.mean[9::10])[:, None]).max() <= 10 * 0.01 + 1e-12
    assert np.array_equal(states.mean[9:18], np.full(9, states.mean[9]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "distance", "gap"), [("O2NC", 0.155, 2.6e-2), ("ZerothO2NC", 0.184, 2.7e-2)]
)
def test_online_to_nonconvex_on_a_half_plane(name, distance, gap):
    case = problems.halfplane()
    method = ONLINE[name](0.02, hypergrad.TwoPenalty(0.1))
    states, _ = path(method, case.problem, [-2.0, 3.0], case.y0, 6000)
    ends = states.mean[9::10][-100:]
    assert np.linalg.norm(ends - np.asarray(case.x_star), axis=1).mean() < 3 * distance
    assert (jax.vmap(case.value)(ends) - 9 / 8).mean() < 3 * gap
    assert np.linalg.norm(states.move, axis=1).max() <= 0.01 + 1e-12


# --- SIGD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "error"), [(1.8e-4, 8e-5), (0.0, 7e-6)], ids=["tilted", "exact"])
def test_dsigd_on_a_half_plane(size, error):
    case = problems.halfplane()
    q = size * jnp.array([0.6, 0.8])
    states, info = path(methods.DSIGD(), case.problem, [-2.0, 3.0], case.y0, 60, q=q)
    assert length(states.x[-1] - case.x_star) < 3 * error
    assert np.all(np.diff(info["upper"]) <= 1e-14)
    # |l_q − l| ≤ L_f ‖q‖/μ, with L_f the largest ‖∇_y f‖ on the way
    steepest = np.linalg.norm(states.y - np.array([0.0, 1.0]), axis=1).max() + size
    gap = np.abs(info["upper"][1:] - jax.vmap(case.value)(states.x[:-1]))
    assert gap.max() <= steepest * size + 1e-12


def test_dsigd_runs_into_a_kink():
    """It ends beside the minimiser q of l_q with a gradient that does not vanish."""
    case = problems.kink1()
    states, info = path(methods.DSIGD(), case.problem, 2.0, case.y0, 60, q=jnp.array(0.01))
    np.testing.assert_allclose(states.x[-1], 0.0111, atol=2e-4)
    np.testing.assert_allclose(info["hypergrad_norm"][-1], 0.991, atol=2e-3)
    assert 50 <= info["backtracks"][-1] <= 60
    assert np.all(np.diff(info["upper"]) <= 1e-14)


@pytest.mark.slow
def test_dsigd_gives_up_a_search_and_stays():
    case = problems.kink1()
    method = methods.DSIGD(max_backtracks=2)
    states, info = path(method, case.problem, 0.0100001, case.y0, 2, q=jnp.array(0.01))
    assert np.array_equal(states.x, [0.0100001, 0.0100001])
    assert np.array_equal(info["backtracks"], [2, 2])


@pytest.mark.slow
def test_sigd_in_a_box():
    case, q = problems.box14(), jnp.array([1e-3, -5e-4])
    start = [3.0, -2.0]
    states, info = path(methods.DSIGD(), case.problem, start, case.y0, 100, q=q)
    np.testing.assert_allclose(states.x[60], [18.0, -22.0], atol=1e-10)
    np.testing.assert_allclose(info["upper"][-1], -201.5, atol=1e-10)
    assert info["hypergrad_norm"][60] < 1e-12
    states, info = path(methods.SSIGD(0.1), case.problem, start, case.y0, 100, q=q)
    np.testing.assert_allclose(states.x[-1], [17.911, -21.882], atol=2e-3)
    np.testing.assert_allclose(info["hypergrad_norm"][-1], 0.074, atol=1e-2)


def test_every_saturated_corner_of_the_box_is_a_local_minimum():
    case = problems.box14()
    corners = [(18, -22), (-22, -22), (18, 18), (-22, 18)]
    values = [-201.5, -239.5, -163.5, -201.5]
    for x, value in zip(corners, values, strict=True):
        x = jnp.array(x, float)
        np.testing.assert_allclose(case.value(x), value)
        np.testing.assert_allclose(case.gradient(x), 0, atol=1e-12)
        np.testing.assert_allclose(jax.hessian(case.value)(x), jnp.eye(2) / 2)


@pytest.mark.slow(unless=lambda method: isinstance(method, methods.SSIGD))
@pytest.mark.parametrize("method", [methods.SSIGD(0.1), methods.DSIGD()])
def test_sigd_keeps_x_in_its_set(method):
    case = problems.sqrtkink()
    states, _ = path(method, case.problem, 1.0, case.y0, 30)
    assert np.all((states.x >= 0) & (states.x <= 1))
    np.testing.assert_allclose(states.x[-1], 0, atol=1e-12)


@pytest.mark.slow(unless=lambda seed: seed == 0)
@pytest.mark.parametrize("seed", [0, 1])
def test_ssigd_with_noise_on_a_half_plane(seed):
    case = problems.halfplane()
    method = methods.SSIGD(lambda k: 1 / (k + 2.0), deviation=1e-4)
    states, _ = path(method, noisy(case), [-2.0, 3.0], case.y0, 4000, seed=seed, noise=0.1)
    assert length(states.x[-1] - case.x_star) < 3 * 3.4e-3


@pytest.mark.slow
def test_ssigd_halves_the_moreau_gradient_with_four_times_the_steps():
    case, squares = problems.kink1(), []
    for beta, steps in ((0.05, 400), (0.025, 1600), (0.0125, 6400)):
        every = []
        for seed in range(6):
            q = jnp.array(0.01)
            method = methods.SSIGD(beta)
            states, _ = path(method, noisy(case), 2.0, case.y0, steps, seed=seed, noise=0.5, q=q)
            x, c = np.asarray(states.x) - 0.01, 0.5  # the closed form of l, shifted by q
            prox = np.where(np.abs(x) <= c, 0, (x - np.sign(x) * c) / (1 + c))
            every.append(np.mean(((x - prox) / c) ** 2))
        squares.append(np.mean(every))
    assert np.all(np.array(squares) < 3 * np.array([0.090, 0.043, 0.021]))
    assert squares[2] < 0.5 * squares[0]


# --- DS-BLO -------------------------------------------------------------------------------------


def bounded_steps(states, x0, cap, damping):
    x = np.concatenate([np.reshape(x0, (1, -1)), np.reshape(states.x, (len(states.x), -1))])
    moved = np.linalg.norm(np.diff(x, axis=0), axis=1)
    m = np.linalg.norm(np.reshape(states.m, (len(states.m), -1)), axis=1)
    return np.all(moved <= 1 / cap + 1e-12) and np.all(moved <= m / damping + 1e-12)


def test_dsblo_stays_near_a_kink():
    case = problems.kink1()
    states, _ = path(methods.DSBLO(), case.problem, 2.0, case.y0, 4000)
    ends = np.abs(states.x[-1000:])
    assert ends.mean() < 3 * 0.038
    assert ends.max() < 3 * 0.12
    assert bounded_steps(states, 2.0, 10, 10)


def test_dsblo_on_a_half_plane():
    case = problems.halfplane()
    states, _ = path(methods.DSBLO(), case.problem, [-2.0, 3.0], case.y0, 2000)
    assert length(states.x[-1] - case.x_star) < 3 * 2.8e-3
    assert bounded_steps(states, [-2.0, 3.0], 10, 10)


@pytest.mark.slow
def test_dsblo_with_noise_on_a_half_plane():
    case = problems.halfplane()
    method = methods.DSBLO(decay=0.99, cap=10.0, damping=100.0)
    states, _ = path(method, noisy(case), [-2.0, 3.0], case.y0, 20_000, noise=0.1)
    assert length(states.x[-1] - case.x_star) < 3 * 4e-3


def test_the_mean_gradient_of_tilted_losses_is_the_smoothed_one():
    """On KINK1 with q uniform in (−r, r): `x − 1 + (x + r)/r` inside."""
    case, r = problems.kink1(), 0.3
    qs = jnp.linspace(-r, r, 4001)[:-1] + r / 4000  # midpoints: the mean over them is exact enough
    mean = jax.jit(
        lambda x: jnp.mean(
            jax.vmap(lambda q: EXACT(lower.tilted(case.problem, q), x, case.y0, Batch()).grad)(qs)
        )
    )
    for x in (-0.2, 0.0, 0.1):
        np.testing.assert_allclose(mean(jnp.array(x)), x - 1 + (x + r) / r, atol=1e-3)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DSIGD", "SSIGD", "DSBLO"])
def test_curved_constraints_are_refused(name):
    case = problems.halfplane()
    ball = Problem(case.problem.upper, case.problem.lower, lower_set=sets.Ball(1.0))
    with pytest.raises(
        methods.Unsupported, match=f"{name} cannot solve this problem: lower_set is"
    ):
        getattr(methods, name)().check(ball)


@pytest.mark.parametrize("name", ["DSBLO", "PIGD", "O2NC", "ZerothO2NC"])
def test_bounds_on_x_are_refused(name):
    case = problems.halfplane()
    bound = Problem(case.problem.upper, case.problem.lower, upper_set=sets.Box(0.0, 1.0))
    with pytest.raises(
        methods.Unsupported, match=f"{name} cannot solve this problem: upper_set is"
    ):
        getattr(methods, name)().check(bound)
