"""The log barrier of the lower problem: solver, hypergradient, and the method made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import run

import bilevel as bl
from bilevel import hypergrad, lower, methods, oracles, problems, schedules, sets
from bilevel.problems import coupled, jumps

WEIGHTS = (1e-1, 1e-2, 1e-3, 1e-4)


@jax.jit
def looked(problem, x, y0, t):
    """The solution at x, `l_t` and `l_t'`."""
    found = lower.LogBarrier(t).solve(problem, x, y0)
    h = hypergrad.barrier(problem, x, found.y, t=t)
    return found, h.value, h.grad


def solved(problem, x, y0, t):
    return looked(problem, x, y0, t)[0]


def slope(problem, x, y0, t):
    return looked(problem, x, y0, t)[1:]


@pytest.mark.parametrize("t", WEIGHTS)
def test_lpjump_closed_forms(t):
    case = problems.lpjump()
    far_outside = jnp.array([3.0, -1.0])
    for x in (0.5, 0.1, 0.0, -2.0):
        x = jnp.array(x)
        found = solved(case.problem, x, far_outside, t)
        np.testing.assert_allclose(found.y, jumps.lpjump_barrier(x, t), atol=1e-12)
        r = jnp.sqrt(t**2 + x**2)
        value, gradient = slope(case.problem, x, case.y0, t)
        np.testing.assert_allclose(value, -x / (t + r), atol=1e-8)
        np.testing.assert_allclose(gradient, -t / (r * (r + t)), rtol=1e-8)
        # The duals at the two sides of y_1 and the bound of y_2; an open side has none.
        first, _ = found.y
        np.testing.assert_allclose(
            found.duals.inequalities, [t / (1 + first), 1, t / (1 - first), 0], atol=1e-8
        )
    np.testing.assert_allclose(slope(case.problem, jnp.array(0.0), case.y0, t)[1], -0.5 / t)


@pytest.mark.slow(unless=lambda t: t == WEIGHTS[0])
@pytest.mark.parametrize("t", WEIGHTS)
def test_other_closed_forms(t):
    case, x = problems.couple1(), jnp.array(2.0)
    found = solved(case.problem, x, jnp.array(5.0), t)
    np.testing.assert_allclose(x - found.y, coupled.couple1_slack(x, t), rtol=1e-9)
    assert abs(found.duals.inequalities[0] - 4) < t  # 4 + t/2 + …
    case = problems.toll()
    for x in (1.0, 2.0, 2.5):
        x = jnp.array(x)
        y = solved(case.problem, x, jnp.array(0.5), t).y
        np.testing.assert_allclose(y, jumps.toll_barrier(x, t), atol=1e-12)


def bent(x, y):
    """An ellipsoid that moves with x, and a half-space."""
    return jnp.stack([jnp.sum((y - x) ** 2 * jnp.array([1.0, 2.0, 3.0])) - 1, y[0] - 0.5 * x[1]])


@pytest.fixture
def moving():
    """A coupled lower level under equations and inequalities, all of which move with x."""

    def lower_loss(x, y, batch):
        return jnp.sum(jnp.cosh(y - x)) + y[0] * y[1] * 0.1

    def upper(x, y, batch):
        return jnp.sum(jnp.sin(y)) + jnp.sum(x * y) + jnp.sum(x**2)

    rows = sets.Polyhedron(
        A=lambda x: jnp.stack([jnp.array([1.0, 0.0, 1.0]), jnp.sin(x)]),
        b=lambda x: jnp.stack([x[0] + 0.1, 0.3 + 0 * x[1]]),
        E=lambda x: jnp.stack([jnp.cos(x), 1 + x]),
        d=lambda x: jnp.stack([x[0] * x[1], 0.5 * x[2]]),
    )
    return bl.Problem(upper, lower_loss, lower_set=rows)


def central(problem, x, y0, t, width):
    return [
        (slope(problem, x + e, y0, t)[0] - slope(problem, x - e, y0, t)[0]) / (2 * width)
        for e in width * jnp.eye(x.size)
    ]


def test_gradient_equals_differences_under_moving_rows(moving):
    x, y0 = jnp.array([0.3, 0.2, -0.4]), jnp.ones(3)
    for t in (1e-1, 1e-3):
        found = solved(moving, x, y0, t)
        h, e = moving.lower_set.constraints(found.y, x)
        assert jnp.all(h < 0)
        np.testing.assert_allclose(e, np.zeros(2), atol=1e-13)
        assert found.residual < 1e-10
        _, gradient = slope(moving, x, y0, t)
        np.testing.assert_allclose(gradient, central(moving, x, y0, t, 1e-5), rtol=1e-6, atol=1e-8)


def test_gradient_equals_differences_under_a_curved_coupling():
    def lower_loss(x, y, batch):
        return jnp.sum((y + 1 - 3 * x) ** 2)

    def upper(x, y, batch):
        return jnp.sum(y**3) + x[0] * y[2]

    problem = bl.Problem(upper, lower_loss, lower_set=sets.Coupled(bent))
    x, y0 = jnp.array([0.3, 0.2, -0.4]), 4 * jnp.ones(3)
    found = solved(problem, x, y0, 1e-2)
    assert jnp.all(bent(x, found.y) < 0)
    _, gradient = slope(problem, x, y0, 1e-2)
    np.testing.assert_allclose(gradient, central(problem, x, y0, 1e-2, 1e-5), rtol=1e-7)


def test_duals_make_a_kkt_point():
    case, x = problems.couple1(), jnp.array(1.5)
    found = solved(case.problem, x, jnp.array(0.0), 1e-7)
    g_y = jax.grad(case.problem.lower, argnums=1)(x, found.y, None)
    np.testing.assert_allclose(g_y + found.duals.inequalities[0], 0, atol=1e-7)
    np.testing.assert_allclose(found.duals.inequalities, [2 * x], atol=1e-6)


@pytest.mark.slow
def test_equations_may_depend_on_each_other():
    """A row given twice changes nothing: Newton works in the null space."""

    def upper(x, y, batch):
        return jnp.sum(y**2)

    def lower_loss(x, y, batch):
        return jnp.sum((y - x) ** 2)

    def problem(second):
        E, d = jnp.stack([jnp.ones(3), second * jnp.ones(3)]), jnp.stack([1.0, second])
        return bl.Problem(
            upper, lower_loss, lower_set=sets.Polyhedron(-jnp.eye(3), jnp.zeros(3), E, d)
        )

    x, y0 = jnp.array([0.2, 0.9, -0.5]), jnp.ones(3) / 3
    once, twice = (slope(problem(second), x, y0, 1e-3) for second in (0.0, 2.0))
    np.testing.assert_allclose(once[1], twice[1], rtol=1e-9)
    assert jnp.linalg.norm(once[1]) > 0.1


def test_no_interior_is_told():
    case = problems.bardlp()
    found = solved(case.problem, jnp.array(5.0), jnp.array(5.0), 1e-3)
    assert jnp.isnan(found.y)


def test_half_precision_of_the_default_kind():
    """In float32 the solve ends, at that precision."""
    case = problems.lpjump(jnp.float32)
    t = jnp.float32(1e-2)
    found = solved(case.problem, case.x0, case.y0, t)
    assert found.y.dtype == jnp.float32
    np.testing.assert_allclose(found.y, jumps.lpjump_barrier(case.x0, t), rtol=1e-4)
    assert found.steps < 60


def test_with_barrier_is_the_penalised_loss():
    case = problems.couple1()
    barred = lower.with_barrier(case.problem, 0.1)
    x, y = jnp.array(2.0), jnp.array(1.5)
    expected = case.problem.lower(x, y, None) - 0.1 * jnp.log(x - y)
    np.testing.assert_allclose(oracles.lower_value(barred, x, y, None), expected)


# --- the method -----------------------------------------------------------------------------------


def ended(case, method, steps, x0=None):
    x0 = case.x0 if x0 is None else jnp.asarray(x0)
    state = method.init(case.problem, x0, case.y0)
    return run(method, case, steps, state=state)


def test_couple1_reference_numbers():
    case = problems.couple1()
    errors = dict(zip((*WEIGHTS, 1e-6), (1.82e-2, 1.87e-3, 1.87e-4, 1.86e-5, 1.9e-7), strict=True))
    for t, error in errors.items():
        state = ended(case, methods.Barrier(t=t), 40)
        np.testing.assert_allclose(state.x - 2, error, rtol=5e-3, atol=4e-7)
        assert state.y < state.x
    ratios = (4.085, 4.0087, 4.0009, 4.0001)
    for t, ratio in zip(WEIGHTS, ratios, strict=True):
        state = ended(case, methods.Barrier(t=t), 40)
        np.testing.assert_allclose(t / (state.x - state.y), ratio, atol=6e-4)


def test_halfplane_reference_numbers():
    """The error is of order t² where the multiplier is positive."""
    case = problems.halfplane()
    errors = (1.47e-2, 2.62e-4, 2.81e-6, 2.83e-8, 2.3e-11)
    for t, error in zip((*WEIGHTS, 1e-6), errors, strict=True):
        state = ended(case, methods.Barrier(t=t), 60, [-2.0, 3.0])
        distance = jnp.linalg.norm(state.x - jnp.array([1.25, 0.75]))
        np.testing.assert_allclose(distance, error, rtol=2e-2, atol=2e-7)
        free = 1 - jnp.sum(state.x)
        slack = (free + jnp.sqrt(free**2 + 8 * t)) / 2
        np.testing.assert_allclose(1 - jnp.sum(state.y), slack, rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "xs", "values"),
    [
        (
            problems.lpjump_q,
            (0.29215959, 0.12153136, 0.04242786, 0.01389931),
            (-0.40091830, -0.72794565, -0.82959431, -0.86078503),
        ),
        (
            problems.toll,
            (1.68158712, 1.86933956, 1.95630151, 1.98595858),
            (-1.30557281, -1.73715729, -1.91255728, -1.97191573),
        ),
    ],
    ids=("lpjump_q", "toll"),
)
def test_minimisers_stand_beside_the_jump(make, xs, values):
    case = make()
    for t, x, value in zip(WEIGHTS, xs, values, strict=True):
        state = ended(case, methods.Barrier(t=t), 40)
        np.testing.assert_allclose(state.x, x, atol=1e-6)
        np.testing.assert_allclose(case.problem.upper(state.x, state.y, None), value, atol=1e-8)
        assert state.step_size < 1  # the wall at the jump asks for short steps


def test_bardlp_ends_in_either_basin():
    case = problems.bardlp_inside()
    for start, ends in ((3.0, (3.9831, 3.9983)), (1.5, (1.0116, 1.0011))):
        for t, end in zip((1e-1, 1e-2), ends, strict=True):
            state = ended(case, methods.Barrier(t=t, max_step=0.1), 60, start)
            np.testing.assert_allclose(state.x, end, atol=6e-5)


def test_strictly_feasible_and_never_rising():
    case = problems.bardlp_inside()
    method = methods.Barrier(t=1e-3, max_step=1.0)
    state, lasts = method.init(case.problem, case.x0, case.y0), []
    step = jax.jit(lambda state: method.step(case.problem, state, bl.Batch()))
    for _ in range(15):
        state, info = step(state)
        lasts.append(float(info["upper"]))
        assert jnp.all(case.problem.lower_set.constraints(state.y, state.x).inequalities < 0)
    assert np.all(np.diff(lasts) <= 1e-12)
    assert lasts[-1] < lasts[0] - 1


def test_it_says_that_no_step_helps_any_more():
    case = problems.couple1()
    method = methods.Barrier(t=1e-3)
    start = method.init(case.problem, case.x0, case.y0)
    state, info = bl.run(case.problem, method, start, steps=40)
    first = int(np.argmax(info["settled"]))
    assert 0 < first < 30
    assert np.mean(info["settled"][first:]) > 0.8  # rounding may bring another step
    assert np.all(info["upper"][first] - info["upper"][first:] < 1e-12)
    assert not np.any(info["settled"][:first])
    assert info["hypergrad_norm"][first] < 1e-5
    np.testing.assert_allclose(state.x - 2, 1.87e-4, rtol=5e-3)


@pytest.mark.slow
def test_a_run_ends_there():
    case = problems.couple1()
    told = {}
    for name, method in {
        "plain": methods.Barrier(t=1e-3),
        "falling": methods.Barrier(t=schedules.Function(jax.tree_util.Partial(tenth))),
    }.items():
        told[name] = bl.solve(
            case.problem, method, case.x0, case.y0, steps=60, log_every=20, progress=False
        )
    assert told["plain"].stats.steps < 60
    assert told["plain"].status.outcome is bl.Outcome.FINISHED
    assert "no step lowers what Barrier minimises" in told["plain"].status.advice
    assert told["falling"].stats.steps == 60  # a smaller t is to come


def test_continuation_brings_t_down():
    """One tenth every ten steps, from 0.1 on: as exact as the last t, from its neighbours."""
    case = problems.couple1()
    method = methods.Barrier(t=schedules.Function(jax.tree_util.Partial(tenth)))
    np.testing.assert_allclose(ended(case, method, 60).x, 2, atol=1e-6)


def tenth(k):
    return 0.1 * 0.1 ** (jnp.asarray(k) // 10).astype(float)


@pytest.mark.slow
def test_a_linear_program_below_with_a_constant_step():
    case = problems.lpjump_q()
    t = 1e-2
    state = ended(case, methods.Barrier(0.02, t=t), 400)
    np.testing.assert_allclose(state.x, 0.12153136, atol=1e-7)


@pytest.mark.slow
def test_story_of_a_simplex_written_as_a_polyhedron():
    """Story 3 of the design; y*(x) is the nearest point of the simplex to x."""
    m = 3
    target = jnp.array([0.7, 0.3, 0.0])

    def upper(x, y, batch):
        return jnp.sum((y - target) ** 2) / 2 + 0.05 * jnp.sum(x**2)

    def lower_loss(x, y, batch):
        return jnp.sum(y**2) / 2 - jnp.sum(x * y)

    feasible = sets.Polyhedron(A=-jnp.eye(m), b=jnp.zeros(m), E=jnp.ones((1, m)), d=jnp.ones(1))
    problem = bl.Problem(upper, lower_loss, lower_set=feasible)
    result = bl.solve(
        problem,
        bl.methods.Barrier(x_update=0.2),
        jnp.array([-0.5, 0.1, 0.4]),
        jnp.full(m, 1 / m),
        steps=400,
        progress=False,
        certify=False,
    )
    assert result.status.ok
    np.testing.assert_allclose(jnp.sum(result.y), 1, atol=1e-13)
    assert jnp.all(result.y > 0)
    np.testing.assert_allclose(result.y, sets.Simplex().project(result.x), atol=2e-3)
    gradient = jax.grad(lambda x: upper(x, sets.Simplex().project(x), None))(result.x)
    assert jnp.linalg.norm(gradient) < 2e-3


def test_refusals():
    case = problems.upcon()
    with pytest.raises(methods.Unsupported, match="Barrier cannot solve this problem: upper_set"):
        methods.Barrier().check(case.problem)
