"""Methods that coincide: to rounding, at the settings where the specification says so (7).

Its twenty items: 1 to 7, 9, 14 and 17 stand here; 8 in test_blocks; 10 to 12, 18, 19 and 20 in
test_linear and test_hypergrad; 13 here and in test_trajectories; 15 in test_maid; 16 in
test_trajectories.
"""

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import hypergrad, linear, lower, methods, oracles, problems, schedules, updates
from bilevel.methods.penalty.barrier_multiplier import barrier_multiplier
from bilevel.methods.variance_reduced.sampled import Point, Sampled
from bilevel.schedules import PolynomialCount

# --- variance reduction on the implicit directions, and on dense second derivatives --------------


def state_after(method, case, steps, problem=None):
    case = case if problem is None else dataclasses.replace(case, problem=problem)
    state = method.init(case.problem, case.x0, case.y0, key=jax.random.key(0))
    return cases.run(method, case, steps, state=state)


def tracking(case, state):
    return float(jnp.linalg.norm(state.y - case.y_star(state.x)))


@pytest.mark.parametrize("problem", ["quad", "curv"])
@pytest.mark.parametrize(
    "method",
    [
        lambda s: methods.SUSTAIN(0.02, 0.3, s, 0.0, 0.0),
        lambda s: methods.SUSTAIN(0.02, 0.3, s, 0.3, 0.7),
        lambda s: methods.SUSTAIN(0.02, 0.3, s, 1.0, 1.0),
        lambda s: methods.MRBO(0.02, 0.3, s, 0.2, 0.6),
    ],
    ids=["SUSTAIN 0", "SUSTAIN 0.3", "SUSTAIN 1", "MRBO"],
)
def test_storm_on_both_directions_without_noise_is_simultaneous_ttsa(problem, method):
    case, series = problems.ALL[problem](), linear.Neumann(19, 0.3)
    found = state_after(method(series), case, 60)
    plain = state_after(methods.TTSA(0.02, 0.3, series, alternating=False), case, 60)
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-11)
    np.testing.assert_allclose(found.y, plain.y, rtol=1e-11)


def test_sustain_with_full_weights_is_simultaneous_ttsa_on_samples_too():
    case, series = problems.quad_noise(), linear.Neumann(4, 0.3)
    data, key = bl.Data(*case.data, batch_size=2, order="replacement"), jax.random.key(5)
    sustain = methods.SUSTAIN(0.02, 0.3, series, 1.0, 1.0)
    ttsa = methods.TTSA(0.02, 0.3, series, alternating=False)
    ends = []
    for method in (sustain, ttsa):
        state = method.init(case.problem, case.x0, case.y0)
        ends.append(bl.run(case.problem, method, state, data=data, key=key, steps=40)[0])
    np.testing.assert_allclose(ends[0].x, ends[1].x, rtol=1e-11)
    np.testing.assert_allclose(ends[0].y, ends[1].y, rtol=1e-11)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_old_and_new_point_see_the_same_randomness(weight):
    """At rest and with weight 0 the differences vanish, whatever the samples and the series.

    Were the number of factors or a batch drawn anew for the old point, the direction would drift.
    """
    case, random = problems.quad_noise(), linear.RandomizedNeumann(20, 0.4)
    data, key = bl.Data(*case.data, batch_size=1, order="replacement"), jax.random.key(5)
    method = methods.SUSTAIN(0.0, 0.0, random, weight, weight)
    first = method.init(case.problem, case.x0, case.y0, key=key)
    first, _ = bl.run(case.problem, method, first, data=data, key=key, steps=1)
    last, _ = bl.run(case.problem, method, first, data=data, key=key, steps=20)
    (_, x1, y1), (_, x2, y2) = first.estimate.direction, last.estimate.direction
    moved = float(jnp.linalg.norm(x1 - x2)), float(jnp.linalg.norm(y1 - y2))
    assert max(moved) < 1e-12 if weight == 0 else min(moved) > 0.1


@pytest.mark.slow(
    unless=lambda problem, period, lower_steps: (problem, period, lower_steps) == ("quad", 3, 4)
)
@pytest.mark.parametrize("problem", ["quad", "curv"])
@pytest.mark.parametrize("period", [3, 1, 50])
@pytest.mark.parametrize("lower_steps", [4, 1])
def test_vrbo_without_noise_has_exact_directions(problem, period, lower_steps):
    """Every move of x and of y is followed, the first from x_k to x_{k+1} included."""
    case, series = problems.ALL[problem](), linear.Neumann(19, 0.3)
    method = methods.VRBO(0.02, 0.3, series, lower_steps, period, restart=1)
    exact = Sampled(case.problem, series)
    for steps in (1, 2, 7):
        state = state_after(method, case, steps)
        sample = exact.samples(bl.Batch(), 1, None)[0]
        expected = jax.jit(exact.__call__)(Point(state.x, state.y), sample)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
            state.directions,
            expected,
        )


@pytest.mark.slow(unless=lambda period: period == 10)
@pytest.mark.parametrize("period", [3, 1, 10, 50])
def test_vrbo_reaches_the_limit_of_its_series_for_any_period(period):
    """With both ends of every difference at the new x it diverges for a period of 10."""
    method = methods.VRBO(0.05, 0.4, linear.Neumann(19, 0.4), 3, period, restart=1)
    state = state_after(method, problems.quad(), 1000)
    np.testing.assert_allclose(state.x, (-0.832643794150, -0.034825687250), atol=1e-11)


def test_vrbo_on_samples_settles_where_it_does_without_noise():
    """Restarts on all eight rows, differences on two: only the bias of the series is left (8.4)."""
    case = problems.quad_noise()
    method = methods.VRBO(0.02, 0.1, linear.Neumann(10, 0.4), 3, period=8, restart=4)
    state = method.init(case.problem, case.x0, case.y0)
    data = bl.Data(*case.data, batch_size=2)
    state, _ = bl.run(case.problem, method, state, data=data, steps=2000)
    assert float((case.gradient(state.x) ** 2).sum()) == pytest.approx(2.0e-3, rel=0.05)
    assert tracking(case, state) < 1e-13


@pytest.mark.slow(unless=lambda problem, weight: problem == "curv" and weight == 0.3)
@pytest.mark.parametrize("problem", ["curv", "quad"])
@pytest.mark.parametrize("weight", [0.3, 0.0, 1.0])
def test_stable_and_svrb_without_noise_track_exactly(problem, weight):
    case = problems.ALL[problem]()
    for method in (methods.STABLE(0.02, 0.3, weight), methods.SVRB(0.02, 0.3, weight)):
        state = state_after(method, case, 30)
        last = state.curvature if isinstance(method, methods.STABLE) else state.factors
        curvature = jax.jit(lambda x, y: hypergrad.curvature(case.problem, x, y, None))
        expected = curvature(*last.point)
        np.testing.assert_allclose(last.direction.hessian, expected.hessian, atol=1e-12)
        np.testing.assert_allclose(last.direction.cross, expected.cross, atol=1e-12)


def test_stable_with_x_at_rest_is_sgd_on_y():
    case, method = problems.quad_noise(), methods.STABLE(0.0, 0.2, 0.5)
    data, key = bl.Data(*case.data, batch_size=1, order="replacement"), jax.random.key(5)
    feed, y = data.feed(key, method.draws(case.problem)), case.y0
    for k in range(20):
        batch = feed.batch(jnp.array(k, jnp.int32)).lower[1]
        y = y - 0.2 * oracles.lower_grad(case.problem, case.x0, y, batch)
    state = method.init(case.problem, case.x0, case.y0)
    state, _ = bl.run(case.problem, method, state, data=feed, steps=20)
    np.testing.assert_allclose(state.y, y, rtol=1e-12)


def test_the_predictor_of_stable_removes_the_drift():
    """Tracking errors at step 100, with and without it (spec 5.4)."""
    case, series = problems.quad(), linear.Neumann(19, 0.4)
    ahead = tracking(case, state_after(methods.STABLE(0.05, 0.4, 0.3), case, 100))
    behind = tracking(case, state_after(methods.TTSA(0.05, 0.4, series), case, 100))
    assert (ahead, behind) == (pytest.approx(9.0e-8, rel=0.01), pytest.approx(1.1e-3, rel=0.05))


@pytest.mark.parametrize(
    "method",
    [
        lambda: methods.STABLE(0.05, 0.4, 0.3),
        lambda: methods.SVRB(0.02, 0.4, 0.3),
        lambda: methods.SUSTAIN(0.02, 0.4, linear.Neumann(149, 0.4)),
        lambda: methods.VRBO(0.05, 0.4, linear.Neumann(149, 0.4), 3, 7, 1),
    ],
    ids=["STABLE", "SVRB", "SUSTAIN", "VRBO"],
)
def test_an_active_upper_set(method):
    """The predictor of STABLE follows the projected move; with the whole one y would stay off."""
    case = problems.quad()
    problem = bl.Problem(case.problem.upper, case.problem.lower, upper_set=bl.sets.Box(-0.5, 0.5))
    state = state_after(method(), case, 3000, problem)
    np.testing.assert_allclose(state.x, (-0.5, 0.143231211045), atol=1e-9)
    assert tracking(case, state) < 1e-9


# --- values of the lower problem: F2SA, F3SA, F2BA, BOME; one step ahead: DARTS -------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, (0.2, 0.9), (0.5, (0.1, 0.7))])
def test_f3sa_without_noise_is_f2sa_with_one_lower_step(weight):
    case = problems.curv()
    steps = 0.01, 0.2, 0.3, schedules.Polynomial(2.0, -1 / 3)
    found = state_after(methods.F3SA(*steps, weight), case, 60)
    plain = state_after(methods.F2SA(*steps, lower_steps=1), case, 60)
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-11)
    np.testing.assert_allclose(found.y, plain.y, rtol=1e-11)


def test_f3sa_with_full_weights_is_f2sa_on_samples_too():
    case, data = problems.quad_noise(), bl.Data(*problems.quad_noise().data, batch_size=2)

    def end(method):
        state = method.init(case.problem, case.x0, case.y0)
        return bl.run(case.problem, method, state, data=data, key=jax.random.key(5), steps=40)[0].x

    plain = end(methods.F2SA(0.01, 0.2, 0.3, 10.0, lower_steps=1))
    np.testing.assert_allclose(end(methods.F3SA(0.01, 0.2, 0.3, 10.0, 1.0)), plain, rtol=1e-11)
    assert float(jnp.linalg.norm(end(methods.F3SA(0.01, 0.2, 0.3, 10.0, 0.1)) - plain)) > 1e-4


@pytest.mark.parametrize(
    ("order", "penalty", "distance"),
    [
        (1, 10.0, 1.5386e-2),
        (1, 100.0, 1.5530e-3),
        (1, 1000.0, 1.5543e-4),
        (2, 10.0, 2.5256e-3),
        (2, 100.0, 2.5106e-5),
        (2, 1000.0, 2.5105e-7),
    ],
)
def test_limit_points_of_a_fixed_penalty(order, penalty, distance):
    case = problems.quad()
    x = state_after(methods.F2BA(0.1, 0.4, penalty, 40, order), case, 1000).x
    np.testing.assert_allclose(jnp.linalg.norm(x - case.x_star), distance, rtol=1e-4)
    tabled = {(1, 10.0): (-0.825833615009, -0.021509298521)}
    tabled[1, 1000.0] = (-0.832257296431, -0.035318734566)
    if (order, penalty) in tabled:
        np.testing.assert_allclose(x, tabled[order, penalty], atol=2e-12)


@pytest.mark.slow(unless=lambda order: order == 4)
@pytest.mark.parametrize("order", [4, 3])
def test_f2ba_at_rest_moves_along_the_difference_of_values(order):
    case = problems.curv()
    settled = state_after(methods.F2BA(0.0, 0.3, 50.0, 20, order), case, 40)
    move = methods.F2BA(1.0, 0.3, 50.0, 20, order).step
    moved, _ = jax.jit(lambda state: move(case.problem, state, bl.Batch()))(settled)
    solver = lower.ToTolerance(1e-12)
    settings = {"penalty": 50.0, "order": order, "solver": solver}
    difference = jax.jit(lambda x, y: hypergrad.value_difference(case.problem, x, y, **settings))
    expected = difference(case.x0, case.y0).grad
    np.testing.assert_allclose(case.x0 - moved.x, expected, rtol=1e-8)


@pytest.mark.parametrize("value_based", [False, True])
@pytest.mark.slow(unless=lambda decrease: decrease == 0.5)
@pytest.mark.parametrize("decrease", [0.5, 0.0, 20.0])
def test_the_direction_of_bome_decreases_the_gap_at_the_rate_asked_for(decrease, value_based):
    case = problems.curv()
    f, g = (lambda x, y, p=p: p(x, y, None) for p in (case.problem.upper, case.problem.lower))
    method = methods.BOME(1.0, 1.0, 0.3, 7, decrease, value_based=value_based)

    def rates(key):
        x, y = case.x0, case.y_star(case.x0) + jax.random.normal(key, (3,))
        moved, _ = method.step(case.problem, method.init(case.problem, x, y), bl.Batch())
        z = y
        for _ in range(7):
            z = z - 0.3 * jax.grad(g, 1)(x, z)
        grad_f = jnp.concatenate(jax.grad(f, (0, 1))(x, y))
        grad_q = jnp.concatenate(jax.grad(lambda x, y: g(x, y) - g(x, z), (0, 1))(x, y))
        least = decrease * (g(x, y) - g(x, z) if value_based else grad_q @ grad_q)
        d = jnp.concatenate([x - moved.x, y - moved.y])
        return d @ grad_q, grad_f @ grad_q, least

    found, free, least = jax.jit(jax.vmap(rates))(jax.random.split(jax.random.key(2), 12))
    np.testing.assert_allclose(found, jnp.maximum(free, least), rtol=1e-9, atol=1e-12)
    assert set((free < least).tolist()) == ({True} if decrease == 20.0 else {False, True})


def test_the_multiplier_of_bome_where_the_gap_is_flat():
    f, flat = (jnp.ones(2), jnp.ones(3)), (jnp.zeros(2), jnp.full(3, 1e-170))
    assert barrier_multiplier(f, flat, jnp.array(0.5)) == 0
    case = problems.scalar()  # z = y = y* and no force on y
    method = methods.BOME(0.1, 0.1)
    state, info = method.step(
        case.problem, method.init(case.problem, jnp.ones(()), jnp.ones(())), bl.Batch()
    )
    assert (state.x, state.y, info["dual"], info["kkt_residual"]) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("terms", "limit"),
    [(10, (-0.834719291705, -0.031354559599)), (20, (-0.832643794150, -0.034825687250))],
)
def test_short_lower_steps_leave_bome_at_the_limit_of_a_neumann_series(terms, limit):
    """z is short of y* by (I − a H)^T (y − y*): the multiplier then inverts a series of T terms."""
    case = problems.quad()
    off = []
    for step in (2e-3, 1e-3):
        x = state_after(methods.BOME(step, step, 0.4, terms), case, 20_000).x
        off.append(float(jnp.linalg.norm(x - jnp.array(limit))))
    assert off[0] < 1e-3
    np.testing.assert_allclose(off[1] / off[0], 0.5, rtol=0.2)  # of the order of the step


@pytest.mark.parametrize("radius", [None, 1e-3])
def test_the_limit_of_darts_on_a_quadratic_solves_a_linear_system(radius):
    case, zero = problems.quad(), (jnp.zeros(2), jnp.zeros(3))
    H, C = (jax.jacobian(jax.grad(case.problem.lower, 1), i)(*zero, None) for i in (1, 0))
    f_x, f_y = (jax.grad(case.problem.upper, i) for i in (0, 1))
    for ahead in (0.0, 0.4):

        def direction(x, ahead=ahead):
            y = case.y_star(x)
            return f_x(x, y, None) - ahead * C.T @ f_y(x, y, None)

        limit = jnp.linalg.solve(jax.jacobian(direction)(zero[0]), -direction(zero[0]))
        found = state_after(methods.DARTS(0.1, 0.4, radius, ahead), case, 2000)
        np.testing.assert_allclose(found.x, limit, rtol=1e-9)
        np.testing.assert_allclose(H @ found.y, H @ case.y_star(limit), rtol=1e-9)
        if ahead == 0.0:  # no implicit term at all
            np.testing.assert_allclose(limit, (-1.226952253458, 0.299464524766), rtol=1e-11)


def test_darts_looks_ahead_by_the_lower_step_unless_told():
    case = problems.curv()
    told = methods.DARTS(0.02, schedules.Polynomial(0.3, 0.5), None, schedules.Polynomial(0.3, 0.5))
    default = methods.DARTS(0.02, schedules.Polynomial(0.3, 0.5))
    heavy = methods.DARTS(0.02, updates.Momentum(0.1), unroll_step=0.3)
    np.testing.assert_array_equal(state_after(told, case, 9).x, state_after(default, case, 9).x)
    assert float(jnp.linalg.norm(state_after(heavy, case, 9).x - case.x0)) > 1e-2
    with pytest.raises(ValueError, match="unroll_step is absent, and y_update, Optax"):
        methods.DARTS(0.02, optax.adam(0.1))


# --- the single loops with a tracked adjoint -----------------------------------------------------


def tracked_after(method, case, steps, data=None):
    state = method.init(case.problem, case.x0, case.y0)
    return bl.run(case.problem, method, state, data=data, key=jax.random.key(5), steps=steps)[0]


REDUCED = {
    "SABA": lambda *steps: methods.SABA(*steps),
    "SRBA 7": lambda *steps: methods.SRBA(*steps, period=7, restart=3),
    "SRBA 1": lambda *steps: methods.SRBA(*steps, period=1, restart=1),
    "SRBA 1000": lambda *steps: methods.SRBA(*steps, period=1000),
}


@pytest.mark.slow(unless=lambda problem, name: problem == "curv" and name in {"SABA", "SRBA 7"})
@pytest.mark.parametrize("problem", ["quad", "curv", "nested"])
@pytest.mark.parametrize("name", REDUCED)
def test_variance_reduction_without_noise_is_soba(problem, name):
    case, steps = problems.ALL[problem](), (0.01, 0.2, 0.2)
    found = tracked_after(REDUCED[name](*steps), case, 100)
    plain = tracked_after(methods.SOBA(*steps), case, 100)
    for a, b in zip(jax.tree.leaves(found.point), jax.tree.leaves(plain.point), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_srba_with_a_period_of_one_is_soba_on_the_mean_of_its_draws():
    case, steps = problems.quad_noise(), (0.01, 0.2, 0.2)
    rows = bl.Data(*case.data, batch_size=1)
    found = tracked_after(methods.SRBA(*steps, period=1, restart=8), case, 50, rows)
    full = tracked_after(methods.SOBA(*steps), case, 50, bl.Data(*case.data))
    np.testing.assert_allclose(found.x, full.x, rtol=1e-11)


def test_a_wide_ball_for_the_adjoint_changes_nothing_and_a_small_one_holds_it():
    case, steps = problems.quad(), (0.01, 0.2, 0.2)
    free = tracked_after(methods.SOBA(*steps), case, 50)
    wide = tracked_after(methods.SOBA(*steps, radius=1e3), case, 50)
    np.testing.assert_allclose(wide.x, free.x, rtol=1e-13)
    assert jnp.linalg.norm(free.v) > 0.1
    for method in (methods.SOBA(*steps, radius=0.1), methods.SRBA(*steps, radius=0.1)):
        held = tracked_after(method, case, 50)
        np.testing.assert_allclose(jnp.linalg.norm(held.v), 0.1, rtol=1e-12)


def test_moving_average_of_full_weight_is_soba_bit_for_bit_with_noise():
    case = problems.quad_noise()
    steps = schedules.Polynomial(0.02, 0.5), *[schedules.Polynomial(0.4, 0.5)] * 2
    rows = bl.Data(*case.data, batch_size=1, order="replacement")
    method = methods.MASOBA(*steps, weight=1.0, tau=1.0, use_updated_h=True)
    found = tracked_after(method, case, 500, rows)
    plain = tracked_after(methods.SOBA(*steps), case, 500, rows)
    for a, b in zip(jax.tree.leaves(found.point), jax.tree.leaves(plain.point), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averaged_projection_reaches_a_solution_on_the_border():
    """Spec 7.17: x in [−½, ½]², the hypergradient there is (0.31787, 0)."""
    quad = problems.quad()
    box = bl.Problem(quad.problem.upper, quad.problem.lower, upper_set=bl.sets.Box(-0.5, 0.5))
    method = methods.MASOBA(0.005, 0.4, 0.4, 0.5, tau=1.0)
    state = method.init(box, jnp.array([0.4, -0.4]), quad.y0)
    end, info = bl.run(box, method, state, steps=6000)
    np.testing.assert_allclose(end.x, (-0.5, 0.143231211045), atol=1e-9)
    np.testing.assert_allclose(info["hypergrad_norm"][-1], 0.31787, atol=1e-5)


def borep(**settings):
    given = {"refine": lower.BallSGD(10), "first": lower.BallSGD(200)} | settings
    return methods.BOREP(0.01, 0.4, 0.4, 0.1, **given)


def test_steps_of_borep_have_the_length_of_the_step_size():
    case = problems.quad_noise()
    rows = bl.Data(*case.data, batch_size=1, order="replacement")
    method = borep()
    state = method.init(case.problem, case.x0, case.y0)
    feed = rows.feed(jax.random.key(0), method.draws(case.problem))

    def body(state, _):
        moved, _ = method.step(case.problem, state, feed.batch(state.k))
        return moved, jnp.linalg.norm(moved.x - state.x)

    _, lengths = jax.lax.scan(body, state, length=60)
    np.testing.assert_allclose(lengths, 0.01, rtol=1e-12)


@pytest.mark.parametrize("use_updated_v", [False, True])
def test_borep_does_not_see_the_scale_of_the_upper_loss(use_updated_v):
    case = problems.quad()
    scaled = bl.Problem(lambda *args: 37.0 * case.problem.upper(*args), case.problem.lower)
    method = borep(use_updated_v=use_updated_v)
    states = [
        bl.run(problem, method, method.init(problem, case.x0, case.y0), steps=80)[0]
        for problem in (case.problem, scaled)
    ]
    np.testing.assert_allclose(states[0].x, states[1].x, rtol=1e-10)
    assert float(jnp.linalg.norm(states[0].x - case.x0)) > 0.5


def test_borep_rests_y_between_refinements():
    case, method = problems.quad(), borep(period=4)
    state, ys = method.init(case.problem, case.x0, case.y0), []
    for _ in range(9):
        state, _ = method.step(case.problem, state, bl.Batch())
        ys.append(np.asarray(state.y))
    moved = [k for k in range(1, 9) if (ys[k] != ys[k - 1]).any()]
    assert moved == [4, 8]
    np.testing.assert_allclose(ys[0], case.y_star(case.x0), atol=1e-9)


# --- lower steps, then an adjoint --------------------------------------------------------------


def same_path(one, other, steps=60, case=None):
    case = problems.quad() if case is None else case
    a, b = state_after(one, case, steps), state_after(other, case, steps)
    np.testing.assert_allclose(a.x, b.x, rtol=1e-12)
    np.testing.assert_allclose(a.y, b.y, rtol=1e-12)


@pytest.mark.parametrize("problem", ["quad", "curv"])
def test_stocbio_is_alset_with_the_mean_series(problem):
    series, case = linear.Neumann(9, 0.3), problems.ALL[problem]()
    same_path(methods.StocBiO(0.05, 0.3, series, 5), methods.ALSET(0.05, 0.3, series, 5), case=case)


@pytest.mark.parametrize(
    "method",
    [
        lambda s: methods.ALSET(0.05, 0.3, s, 1),
        lambda s: methods.BSA(0.05, 0.3, s, 1),
        lambda s: methods.BSA(0.05, 0.3, s, PolynomialCount(0.0)),
    ],
    ids=["ALSET(1)", "BSA(1)", "BSA growing not at all"],
)
def test_one_lower_step_is_ttsa(method):
    series = linear.Neumann(9, 0.3)
    same_path(method(series), methods.TTSA(0.05, 0.3, series))


@pytest.mark.parametrize("problem", ["quad", "curv"])
def test_bioaid_with_a_fixed_point_is_amigo(problem):
    inner, case = linear.FixedPoint(4, 0.3), problems.ALL[problem]()
    same_path(methods.BiOAID(0.05, 0.3, inner, 3), methods.AmIGO(0.05, 0.3, inner, 3), case=case)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_fsla_without_noise_is_amigo_with_one_step_of_each(weight):
    same_path(
        methods.FSLA(0.01, 0.4, 0.4, weight),
        methods.AmIGO(0.01, 0.4, linear.FixedPoint(1, 0.4), 1),
    )


def test_cold_starts_with_few_lower_steps_stay_off():
    """BSA as published, with ten steps from y0 each time, stalls; warm starts do not."""
    case, series = problems.quad(), linear.Neumann(19, 0.4)
    cold = state_after(methods.BSA(0.05, 0.4, series, 10, warm=False), case, 1000)
    warm = state_after(methods.BSA(0.05, 0.4, series, 10), case, 1000)
    assert float(jnp.linalg.norm(case.gradient(cold.x))) == pytest.approx(0.1645, rel=1e-3)
    assert float(jnp.linalg.norm(cold.x - case.x_star)) == pytest.approx(1.52e-2, rel=1e-2)
    assert float(jnp.linalg.norm(warm.x - case.x_star)) == pytest.approx(7.12e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "distance"),
    [
        (lambda: methods.StocBiO(0.05, 0.4, linear.Neumann(4, 0.4), 20), 1.5590e-2),
        (lambda: methods.StocBiO(0.05, 0.4, linear.Neumann(9, 0.4), 20), 4.7549e-3),
        (lambda: methods.BiOITD(0.05, 0.4, 10), 4.7549e-3),
        (lambda: methods.BiOITD(0.05, 0.4, 40), 1.9766e-5),
    ],
    ids=["Neumann 5", "Neumann 10", "unrolled 10", "unrolled 40"],
)
def test_a_cut_series_leaves_the_limit_of_its_linear_system(method, distance):
    """On a quadratic the limit solves `∇_x f − G_xy W ∇_y f = 0` with W the series."""
    case = problems.quad()
    state = state_after(method(), case, 1500)
    assert float(jnp.linalg.norm(state.x - case.x_star)) == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize("alternating", [True, False])
def test_ttsa_reaches_an_active_upper_set(alternating):
    case, series = problems.quad(), linear.Neumann(59, 0.4)
    problem = bl.Problem(case.problem.upper, case.problem.lower, upper_set=bl.sets.Box(-0.5, 0.5))
    state = state_after(methods.TTSA(0.02, 0.4, series, alternating), case, 3000, problem)
    np.testing.assert_allclose(state.x, (-0.5, 0.143231211045), atol=2e-6)  # the series is cut
    np.testing.assert_allclose(case.gradient(state.x), (0.31787, 0.0), atol=1e-5)


def test_alset_on_a_min_max_problem_is_descent_ascent():
    """With g = −f, at y*(x) the implicit term vanishes: the exact adjoint is that of ∇_y f = 0."""
    case = problems.minmax()
    state = state_after(methods.ALSET(0.05, 0.1, linear.Dense(), 3), case, 2000)
    np.testing.assert_allclose(state.x, case.x_star, atol=1e-6)
