"""Coupled constraints: the problems, and the first-order methods for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import run
from constrained_cases import following
from scipy import optimize

import bilevel as bl
from bilevel import methods, problems, schedules, sets
from bilevel.lower import kkt, lagrangian
from bilevel.problems import coupled, jumps


def ended(case, method, steps, x0=None):
    x0 = case.x0 if x0 is None else jnp.asarray(x0)
    return run(method, case, steps, state=method.init(case.problem, x0, case.y0))


# --- problems -------------------------------------------------------------------------------------


def test_upper_solutions_on_a_grid():
    """No point of a fine grid is better than the solution that a case tells."""
    for make, lo, hi in (
        (problems.couple1, -3, 6),
        (problems.cptoy, 0, 3),
        (problems.mmcouple, -6, 6),
        (problems.bardlp, 1, 4),
        (problems.upcon, -3, 0.5),
    ):
        case = make()
        values = jax.vmap(case.value)(jnp.linspace(lo, hi, 1001))
        best = case.value(case.x_star)
        assert values.min() >= best - 1e-12
        assert values.min() < best + 1e-3
    np.testing.assert_allclose(problems.couple1().value(jnp.array(2.0)), 2)
    np.testing.assert_allclose(problems.mmcouple().value(jnp.array(-2.0)), -4)
    np.testing.assert_allclose(problems.upcon().value(jnp.array(0.5)), 9 / 8)
    case = problems.cptoy()
    np.testing.assert_allclose(case.value(case.x_star), 2.6544983314, atol=1e-10)
    for x, value in ((1.0, -7), (4.0, -12), (2.0, -2)):
        np.testing.assert_allclose(problems.bardlp().value(jnp.array(x)), value)


def test_linear_lower_levels_by_another_solver():
    for make, xs in (
        (problems.lpjump, (-0.7, 0.3)),
        (problems.toll, (1.0, 3.0)),
        (problems.bardlp, (1.2, 2.5, 3.7)),
    ):
        case = make()
        for x in map(jnp.asarray, xs):
            rows = case.problem.lower_set.rows(case.y0, x)
            finite = np.isfinite(rows.b)
            cost = jnp.ravel(jax.grad(case.problem.lower, argnums=1)(x, case.y0, None))
            found = optimize.linprog(
                cost, A_ub=rows.A[finite], b_ub=rows.b[finite], bounds=(None, None)
            )
            np.testing.assert_allclose(jnp.ravel(case.y_star(x)), found.x, atol=1e-9)


def test_penalty_of_the_jump_is_a_ramp():
    y = jnp.linspace(-1, 1, 2001)
    for s in (0.1, 1.0):
        for x in (-2.0, -0.5 * s, -0.01, 0.0, 0.7):
            gap = x * y + abs(x)
            lowest = jnp.min(y + gap / s)
            np.testing.assert_allclose(jumps.lpjump_penalty(jnp.array(x), s), lowest, atol=1e-3)


def test_upcon_closed_forms():
    for weight in (10.0, 1000.0):
        cost = lambda x, w=weight: (x - 2) ** 2 / 2 + w / 2 * max(2 * x - 1, 0) ** 2  # noqa: E731
        x = optimize.minimize_scalar(cost, bounds=(0, 2), method="bounded").x
        np.testing.assert_allclose(coupled.upcon_penalised(weight), x, atol=1e-5)
    for t, error in ((1e-2, -0.006637), (1e-4, -6.6664e-5), (1e-6, -6.6667e-7)):
        np.testing.assert_allclose(coupled.upcon_barrier(t) - 0.5, error, rtol=1e-4)


def test_cvxcpl_in_several_dimensions():
    case = problems.cvxcpl(size=3)
    np.testing.assert_allclose(case.value(case.x_star), 0.15)
    x = jnp.array([0.3, -1.0, 0.2])
    y = case.y_star(x)
    assert case.problem.lower_set.violation(y, x) < 1e-14
    # KKT with multiplier −1, and among the solutions the one nearest to x.
    g_y = jax.grad(case.problem.lower, argnums=1)(x, y, None)
    np.testing.assert_allclose(jnp.concatenate([g_y["first"], g_y["second"]]), np.ones(6))
    assert jnp.ptp(y["second"] - x) < 1e-14


# --- multipliers ----------------------------------------------------------------------------------


def test_split_keeps_one_projection_and_charges_the_rest():
    problem = bl.Problem(
        lambda x, y, batch: jnp.sum(y),
        lambda x, y, batch: jnp.sum((y - x) ** 2),
        lower_set=(sets.Box(-1.0, 1.0), sets.Coupled(lambda x, y: y - x)),
    )
    Y, rest = lagrangian.split(problem)
    assert isinstance(Y, sets.Box)
    x, y = jnp.array([0.5, 2.0]), jnp.array([1.0, 0.0])
    h, e = lagrangian.values(rest, x, y)
    np.testing.assert_allclose(h, [0.5, -2])
    assert e.size == 0
    duals = kkt.Duals(jnp.array([3.0, 4.0]), e)
    by_x, by_y = lagrangian.force(rest, x, y, duals)
    np.testing.assert_allclose(by_x, [-3, -4])
    np.testing.assert_allclose(by_y, [3, 4])
    clipped = lagrangian.allowed(kkt.Duals(jnp.array([-1.0, 9.0]), jnp.array([-9.0])), 5.0)
    np.testing.assert_allclose(clipped.inequalities, [0, 5])
    np.testing.assert_allclose(clipped.equalities, [-5])


# --- BLOCC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
def test_blocc_couple1_is_exact_for_every_penalty(penalty):
    state = ended(problems.couple1(), methods.BLOCC(0.05, 0.25, 1.0, penalty, 60, 3), 300)
    np.testing.assert_allclose(state.x, 2, atol=1e-12)
    np.testing.assert_allclose(state.at_g.duals.inequalities, [4], atol=1e-11)
    np.testing.assert_allclose(
        penalty * state.at_f.duals.inequalities, [2 + 4 * penalty], rtol=1e-11
    )


def test_blocc_cptoy_reference_numbers():
    case, method = problems.cptoy(), methods.BLOCC(0.01, 0.1, 0.1, 5.0, 200)
    for start, end in (
        (0.1, 0.3007047783),
        (0.8, 1.162690218),
        (1.5, 1.162690218),
        (2.5, 1.162690218),
    ):
        np.testing.assert_allclose(ended(case, method, 600, start).x, end, atol=1e-9)


def test_blocc_with_a_box_and_a_coupling():
    """Both sides bind: the box is projected on, the coupling has a multiplier."""
    base = problems.couple1().problem
    both = (sets.Box(-1.0, 1.5), base.lower_set)
    problem = bl.Problem(base.upper, base.lower, lower_set=both)
    method = methods.BLOCC(schedules.Polynomial(0.05, 0.5), 0.25, 1.0, 10.0, 60, 3)
    start = method.init(problem, jnp.array(0.5), jnp.array(0.0))
    state, _ = bl.run(problem, method, start, steps=600)
    # y* = min(x, 3/2): l = (x − 1)² + (min(x, 3/2) − 3)² is least at the kink x = 3/2.
    np.testing.assert_allclose(state.x, 1.5, atol=1e-2)
    assert state.y <= 1.5


# --- GDA and MGD ----------------------------------------------------------------------------------


def test_gda_reference_numbers():
    case = problems.mmcouple()
    state = ended(case, methods.GDA(0.2, 0.5, 0.2), 400)
    np.testing.assert_allclose([state.x, state.y], [-2, -2], atol=1e-14)
    np.testing.assert_allclose(state.duals.inequalities, [4], atol=1e-13)
    state = ended(case, methods.GDA(0.2, 0.5, 0.2, 10), 200)
    np.testing.assert_allclose(state.x, -2, atol=1.8e-6)


def test_mgd_descends_in_the_multipliers_at_the_saddle_of_the_others():
    """At λ the saddle of mmcouple is (−λ/2, 2 − λ), so that λ ← λ − b (λ/2 − 2)."""
    case, b = problems.mmcouple(), 0.5
    method = methods.MGD(0.2, 0.5, b, saddle_steps=100)
    dual = 0.0
    for k in range(1, 4):
        state = ended(case, method, k)
        np.testing.assert_allclose([state.x, state.y], [-dual / 2, 2 - dual], atol=1e-14)
        dual -= b * (dual / 2 - 2)
        np.testing.assert_allclose(state.duals.inequalities, [dual], atol=1e-13)


@pytest.mark.parametrize("method", [methods.GDA(), methods.MGD()], ids=["GDA", "MGD"])
def test_min_max_methods_tell_when_the_levels_do_not_oppose(method):
    batch = bl.Batch()
    for case, opposed in ((problems.mmcouple(), True), (problems.couple1(), False)):
        state = method.init(case.problem, case.x0, case.y0)
        mismatch = method.step(case.problem, state, batch)[1]["mismatch"]
        assert (mismatch < 1e-12) == opposed


# --- LVHBA ----------------------------------------------------------------------------------------


def test_lvhba_bias_of_a_constant_penalty():
    case = problems.cvxcpl()
    for penalty in (1.0, 10.0):
        state = ended(case, methods.LVHBA(0.05, 0.1, 0.05, penalty), 20_000)
        np.testing.assert_allclose(state.x, coupled.cvxcpl_biased(penalty), atol=1e-9)
    np.testing.assert_allclose(coupled.cvxcpl_biased(10.0), -9 / 28)


def test_lvhba_reference_numbers():
    growing = schedules.Polynomial(10.0, -0.3)
    state = ended(problems.cvxcpl(), methods.LVHBA(0.05, 0.1, 0.05, growing), 50_000)
    np.testing.assert_allclose(state.x + 0.3, -9.3e-4, atol=1e-5)
    np.testing.assert_allclose(state.duals.equalities, -1.0008, atol=1e-4)
    method = methods.LVHBA(
        0.01, 0.05, 0.01, schedules.Polynomial(1.0, -0.3), proximal=0.5, dual_proximal=0.5
    )
    case = problems.couple1()
    np.testing.assert_allclose(ended(case, method, 5000).x, 1.879, atol=1e-3)
    state = ended(case, method, 50_000)
    np.testing.assert_allclose(state.x, 2, atol=2e-6)
    np.testing.assert_allclose(state.anchor.inequalities, 4, atol=1e-4)


def test_lvhba_stays_in_the_joint_set():
    """Several inequalities, one of them on x, by a small program a step."""
    base = problems.couple1().problem
    problem = bl.Problem(
        base.upper, base.lower, upper_set=sets.Box(0.0, 1.5), lower_set=base.lower_set
    )
    method = methods.LVHBA(0.05, 0.1, 0.05)
    state = method.init(problem, jnp.array(3.0), jnp.array(9.0))
    step = jax.jit(lambda state: method.step(problem, state, bl.Batch())[0])
    for _ in range(50):
        assert 0 <= state.x <= 1.5 + 1e-12
        assert state.y <= state.x + 1e-12
        state = step(state)


def test_lvhba_refuses_what_it_cannot_project_on_jointly():
    base, method = problems.couple1().problem, methods.LVHBA()
    bent = sets.Coupled(lambda x, y: y**2 - x)
    turning = sets.Polyhedron(lambda x: jnp.reshape(x, (1, 1)), jnp.ones(1))  # x y <= 1
    for a_set in (bent, turning):
        problem = bl.Problem(base.upper, base.lower, lower_set=a_set)
        with pytest.raises(methods.Unsupported, match=r"LVHBA cannot solve .*affine in"):
            method.init(problem, jnp.array(1.0), jnp.array(0.0))
    affine = sets.Coupled(lambda x, y: y - 2 * x - 1)
    method.init(
        bl.Problem(base.upper, base.lower, lower_set=affine), jnp.array(1.0), jnp.array(0.0)
    )


# --- upper constraints ----------------------------------------------------------------------------


def test_augmented_lagrangian_is_exact():
    method = methods.AugmentedLagrangian(following(0.02), 10.0, period=200)
    state = ended(problems.upcon(), method, 15 * 200)
    np.testing.assert_allclose(state.x, 0.5, atol=1e-14)
    np.testing.assert_allclose(state.duals.inequalities, [0.75], atol=1e-13)


def test_augmented_lagrangian_raises_a_slow_penalty():
    slow = methods.AugmentedLagrangian(following(0.004), 0.1, growth=3.0, period=100)
    state = ended(problems.upcon(), slow, 3000)
    assert state.weight > 0.2
    np.testing.assert_allclose(state.x, 0.5, atol=1e-5)


def test_penalty_and_barrier_miss_by_their_closed_forms():
    case = problems.upcon()
    for weight in (10.0, 100.0, 1000.0):
        state = ended(
            case, methods.QuadraticPenalty(following(0.5 / (1 + 4 * weight)), weight), 60_000
        )
        np.testing.assert_allclose(state.x, coupled.upcon_penalised(weight), atol=1e-12)
    for t in (1e-2, 1e-4):
        state = ended(case, methods.UpperBarrier(following(0.2 * t), t), 200_000)
        np.testing.assert_allclose(state.x, coupled.upcon_barrier(t), atol=1e-12)
        assert state.y < 1


@pytest.mark.parametrize(
    "inner",
    [methods.SOBA(0.01, 0.5, 0.5), methods.F2BA(0.01, 0.5, penalty=1e4, lower_steps=30, order=2)],
    ids=lambda method: type(method).__name__,
)
def test_any_method_may_be_inside(inner):
    state = ended(problems.upcon(), methods.AugmentedLagrangian(inner, period=200), 4000)
    np.testing.assert_allclose(state.x, 0.5, atol=1e-4)  # F2BA's y is 1/penalty off


def test_a_fixed_set_stays_with_the_method_inside():
    base = problems.upcon().problem
    upper_set = (sets.Box(-1.0, 0.3), base.upper_set)
    problem = bl.Problem(base.upper, base.lower, upper_set=upper_set)
    method = methods.AugmentedLagrangian(following(0.02))
    state = method.init(problem, jnp.array(0.0), jnp.array(0.0))
    state, _ = bl.run(problem, method, state, steps=300)
    np.testing.assert_allclose(state.x, 0.3)
    np.testing.assert_allclose(state.duals.inequalities, [0])  # the coupling is slack


def test_refusals():
    case = problems.upcon()
    for method in (methods.BLOCC(), methods.GDA(), methods.MGD(), methods.LVHBA(), following(0.1)):
        with pytest.raises(methods.Unsupported, match="AugmentedLagrangian"):
            method.check(case.problem)
    below = problems.couple1().problem
    both = bl.Problem(
        below.upper, below.lower, upper_set=case.problem.upper_set, lower_set=below.lower_set
    )
    methods.AugmentedLagrangian(methods.Barrier()).check(both)
    with pytest.raises(methods.Unsupported, match="BA cannot solve this problem: lower_set"):
        methods.AugmentedLagrangian(following(0.1)).check(both)
    moving = sets.Polyhedron(E=jnp.ones((1, 1)), d=lambda x: jnp.reshape(x, (1,)))
    problem = bl.Problem(below.upper, below.lower, upper_set=moving)
    methods.QuadraticPenalty(following(0.1)).check(problem)
    with pytest.raises(methods.Unsupported, match="equations"):
        methods.UpperBarrier(following(0.1)).check(problem)


def test_both_levels_coupled():
    """`y <= x` below and `y* <= 1` above: a barrier inside an augmented Lagrangian."""
    below = problems.couple1().problem
    at_most_one = sets.Coupled(lambda x, y: y - 1)
    problem = bl.Problem(below.upper, below.lower, upper_set=at_most_one, lower_set=below.lower_set)
    method = methods.AugmentedLagrangian(methods.Barrier(0.02, t=1e-5), period=50)
    start = method.init(problem, jnp.array(0.5), jnp.array(0.0))
    state, _ = bl.run(problem, method, start, steps=1000)
    np.testing.assert_allclose([state.x, state.y], [1, 1], atol=1e-4)
    np.testing.assert_allclose(state.duals.inequalities, [4], atol=1e-3)  # l'(1) = −4
