"""Methods for flat, nonconvex and equality-constrained lower levels: the spec's figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import distance, run
from scipy import optimize

import bilevel as bl
from bilevel import hypergrad, linear, lower, methods, oracles, problems, schedules, sets
from bilevel.methods.penalty.infeasibility import infeasibility, penalised
from bilevel.methods.penalty.minimax import saddle
from bilevel.methods.penalty.value_gap import value_gap
from bilevel.problem import Batch
from bilevel.problems import flat

close = functools.partial(np.testing.assert_allclose, rtol=0)
EQEQ, RANK1, PLSIN, SINE = problems.eqeq(), problems.rank1(), problems.plsin(), problems.sine()


def started(case, x0, y0):
    return dataclasses.replace(case, x0=jnp.array(x0), y0=jnp.array(y0))


# --- the problems -------------------------------------------------------------------------------


def minimised(fn, start):
    """An independent optimiser, in double precision."""
    found = optimize.minimize(
        jax.jit(fn), start, jac=jax.jit(jax.grad(fn)), method="BFGS", options={"gtol": 1e-10}
    )
    return found.x


@pytest.mark.parametrize("penalty", [1.0, 10.0])
def test_closed_forms_of_the_penalties_on_rank1(penalty):
    f, g = RANK1.problem.upper, RANK1.problem.lower

    def split(z):
        return z[0], z[1:]

    def by_value(z):
        return f(*split(z), None) + penalty * g(*split(z), None)  # min g is zero

    def by_gradient(z):
        g_y = jax.grad(g, argnums=1)(*split(z), None)
        return f(*split(z), None) + penalty * g_y @ g_y / 2

    def by_envelope(z):
        """`min_t ½ (Σt − x)² + ½ ‖t − y‖²` is `(Σy − x)²/(2 (1 + 2))`."""
        x, y = split(z)
        return f(x, y, None) + penalty * (g(x, y, None) - (y.sum() - x) ** 2 / 6)

    for fn, known in (
        (by_value, flat.rank1_penalised(penalty)),
        (by_gradient, flat.rank1_penalised(2 * penalty)),
        (by_envelope, flat.rank1_moreau(penalty)),
    ):
        close(minimised(fn, np.zeros(3)), np.append(*known), atol=1e-7)


def test_closed_form_of_the_penalty_on_sine():
    f, g = SINE.problem.upper, SINE.problem.lower
    found = minimised(lambda z: f(*z, None) + 100 * g(*z, None), np.array([2.3, 4.3]))
    close(found - np.array([flat.SINE_X, 2 + flat.SINE_X]), flat.sine_penalised(100.0), atol=1e-7)
    close(flat.sine_penalised(100.0), -3.52671e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("case", "value"),
    [(EQEQ, 3 / 4), (RANK1, 2 / 3), (PLSIN, 0.1999108877), (SINE, 2 * (flat.SINE_X - 2) ** 2)],
    ids=lambda case: getattr(case, "name", ""),
)
def test_answers_are_the_least_of_both_levels(case, value):
    """On a grid: no feasible pair is better, and the lower solution is one."""
    close(case.value(case.x_star), value, atol=1e-9)
    if case is EQEQ:
        along = jnp.linspace(-2, 2, 2001)
        xs = jnp.stack([along, 1 - along], axis=1)
        assert jnp.min(jax.vmap(case.value)(xs)) >= value - 1e-9
        return
    xs = jnp.linspace(0, 3, 301)
    assert jnp.min(jax.vmap(case.value)(xs)) >= value - 1e-9
    if case is RANK1:  # the optimistic y: least f along the line
        for x in (0.0, 1.5):
            y = case.y_star(jnp.array(x))
            rivals = y[None] + jnp.linspace(-2, 2, 401)[:, None] * jnp.array([[1.0, -1.0]])
            values = jax.vmap(lambda y, x=x: case.problem.upper(x, y, None))(rivals)
            assert case.problem.lower(x, y, None) < 1e-30
            assert case.value(jnp.array(x)) <= values.min()
    else:
        ys = jnp.linspace(-6, 9, 3001)
        for x in (0.4, 1.7, 2.9):
            lower_values = jax.vmap(lambda y, x=x: case.problem.lower(x, y, None))(ys)
            y = case.y_star(jnp.array(x))
            assert case.problem.lower(x, y, None) <= lower_values.min() + 1e-12


@pytest.mark.parametrize(
    ("x", "value"), [(0.3823600748, 0.4427057224), (2.8296418059, 1.2434582728)]
)
def test_other_local_minima_of_plsin(x, value):
    close(PLSIN.value(jnp.array(x)), value, atol=1e-9)
    close(PLSIN.gradient(jnp.array(x)), 0, atol=1e-7)


# --- the null-space hypergradient ---------------------------------------------------------------


def moving(x):
    """Equations whose matrix moves with x as well."""
    E = jnp.array([[1.0, 2.0, -1.0, 0.5], [0.3, -1.0, 1.0, 2.0]])
    return E + 0.3 * jnp.sin(x[0]) * jnp.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])


def moving_right(x):
    return jnp.stack([jnp.sin(x[1]), x[0] * x[1]])


def curved(x, y, batch):
    H = jnp.array([[2.0, 0.3, 0, 0], [0.3, 1, 0, 0], [0, 0, 1.5, 0.2], [0, 0, 0.2, 1]])
    return y @ H @ y / 2 + jnp.sum(jnp.cosh(y - x[0])) / 4 + x[1] * y[0] * y[2] / 4


def aimed(x, y, batch):
    return jnp.sum((y - 1) ** 2) / 2 + x @ x / 2 + x[0] * y[3]


MOVING = bl.Problem(aimed, curved, lower_set=sets.Polyhedron(E=moving, d=moving_right))


@jax.jit
def moving_solution(x):
    """Newton's method on the conditions of optimality."""

    def conditions(u):
        y, dual = u[:4], u[4:]
        E = moving(x)
        slope = jax.grad(curved, argnums=1)(x, y, None) + E.T @ dual
        return jnp.concatenate([slope, E @ y - moving_right(x)])

    def newton(_, u):
        return u - jnp.linalg.solve(jax.jacobian(conditions)(u), conditions(u))

    return jax.lax.fori_loop(0, 30, newton, jnp.zeros(6))[:4]


def moving_gradient(x):
    value = lambda x: aimed(x, moving_solution(x), None)  # noqa: E731
    return np.array([(value(x + e) - value(x - e)) / 2e-5 for e in 1e-5 * jnp.eye(2)])


@pytest.mark.slow(unless=lambda solver: not isinstance(solver, linear.Neumann))
@pytest.mark.parametrize("solver", [linear.CG(10), linear.Dense(), linear.Neumann(400, 0.2)])
def test_null_space_hypergradient_of_equations_that_move(solver):
    x = jnp.array([0.7, -0.4])
    h = jax.jit(lambda x, y: hypergrad.null_space(MOVING, x, y, linear=solver))(
        x, moving_solution(x)
    )
    close(h.grad, moving_gradient(x), atol=1e-8)
    assert h.residual < 1e-9


def test_difference_of_lagrangians_of_equations_that_move():
    x = jnp.array([0.7, -0.4])
    y = moving_solution(x)

    @jax.jit
    def found(x, y):
        return hypergrad.lagrangian_difference(
            MOVING, x, (y, y), perturbation=1e-5, solver=lower.ToTolerance(1e-11)
        )

    h = found(x, y)
    close(h.grad, moving_gradient(x), atol=2e-4)
    close(h.y[0], y, atol=1e-9)


def test_null_space_hypergradient_without_equations_is_the_implicit_one():
    case = problems.quad()
    y = case.y_star(case.x0)
    a = hypergrad.null_space(case.problem, case.x0, y, linear=linear.Dense())
    b = hypergrad.implicit(case.problem, case.x0, y, linear=linear.Dense())
    close(a.grad, b.grad, atol=1e-12)


def test_the_random_series_has_the_mean_of_the_full_one_in_the_null_space():
    x, terms = jnp.array([0.7, -0.4]), 8
    y = moving_solution(x)

    def drawn(key):
        series = linear.RandomizedNeumann(terms, 0.2)
        return hypergrad.null_space(MOVING, x, y, linear=series, key=key).grad

    draws = jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0), 4000))
    full = hypergrad.null_space(MOVING, x, y, linear=linear.Neumann(terms - 1, 0.2)).grad
    noise = draws.std(axis=0) / np.sqrt(4000)
    assert (abs(draws.mean(axis=0) - full) < 4 * noise).all()


# --- AiPOD, E-AiPOD, Kornowski et al.: EQEQ ------------------------------------------------------

AIPOD = methods.AiPOD(0.2, 0.5, linear.CG(4))


def test_aipod_without_noise():
    errors, tracking, state = {}, {}, None
    for k in range(1, 101):
        last = EQEQ.x0 if state is None else state.x
        state = run(AIPOD, EQEQ, 1, state=state)
        off = EQEQ.problem.lower_set.constraints(state.y, last).equalities
        assert abs(off).max() < 1e-12
        assert abs(state.x.sum() - 1) < 1e-12
        errors[k] = distance(state.x, EQEQ.x_star)
        tracking[k] = distance(state.y, EQEQ.y_star(last))
    assert errors[50] < 1e-10
    assert errors[100] < 1e-15
    assert tracking[10] < 3 * 1.4e-2
    assert tracking[50] < 3 * 6e-11


def noisy(loss):
    """A loss whose gradients in x (the first two entries) and y are noisy."""

    def of(x, y, noise):
        return loss(x, y, None) + (0 if noise is None else noise @ jnp.concatenate([x, y]))

    return of


NOISY = bl.Problem(
    noisy(EQEQ.problem.upper),
    noisy(EQEQ.problem.lower),
    upper_set=EQEQ.problem.upper_set,
    lower_set=EQEQ.problem.lower_set,
)


def draw(key):
    return 0.1 * jax.random.normal(key, (4,))


def draw_lower(key):
    return draw(key).at[:2].set(0)  # ∇_x g is never asked for


NOISE = bl.Data(draw, draw_lower)


@pytest.mark.slow(unless=lambda steps: steps <= 10_000)
@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [(0.1, 1000, 4.4e-3), (0.03, 10_000, 1.4e-3), (0.01, 100_000, 4.1e-4)],
)
def test_aipod_with_noise(step, steps, expected):
    method = methods.AiPOD(step, step, linear.CG(4))
    feed = NOISE.feed(jax.random.key(1), method.draws(NOISY))

    @jax.jit
    def mean_square(state):
        def body(state, _):
            slope = EQEQ.gradient(state.x)
            along = slope - slope.mean()  # in the plane x_0 + x_1 = 1
            return method.step(NOISY, state, feed.batch(state.k))[0], along @ along

        return jax.lax.scan(body, state, None, length=steps)[1][steps // 2 :].mean()

    found = mean_square(method.init(NOISY, EQEQ.x0, EQEQ.y0))
    assert expected / 3 < found < 3 * expected


@pytest.mark.parametrize("probability", [1.0, 0.3, 0.1])
def test_eaipod_without_noise(probability):
    method = methods.EAiPOD(0.05, 0.5, linear.CG(4), 5, 2, probability)
    state = method.init(EQEQ.problem, EQEQ.x0, EQEQ.y0, key=jax.random.key(3))
    state, info = bl.run(EQEQ.problem, method, state, steps=300)
    assert distance(state.x, EQEQ.x_star) < 1e-14
    close(state.r, jnp.full(2, -1 / 6), atol=1e-12)  # ∇_y g, in the range of Aᵀ
    expected = 1500 * probability
    assert abs(int(info["projections"].sum()) - expected) <= 4 * np.sqrt(
        expected * (1 - probability)
    )


def test_eaipod_with_noise():
    method = methods.EAiPOD(0.01, 0.1, linear.CG(4), 5, 2, 0.3)

    @jax.jit
    @jax.vmap
    def error(key):
        state = method.init(NOISY, EQEQ.x0, EQEQ.y0, key=key)
        state, _ = bl.run(NOISY, method, state, data=NOISE, key=key, steps=3000)
        return jnp.linalg.norm(state.x - EQEQ.x_star)

    assert error(jax.random.split(jax.random.key(0), 6)).max() < 3 * 1.7e-2


def test_eaipod_with_every_projection_and_one_upper_step_is_aipod():
    one = methods.EAiPOD(0.2, 0.5, linear.CG(4), 3, 1, 1.0)
    other = methods.AiPOD(0.2, 0.5, linear.CG(4), 3)
    for steps in (1, 20):
        a, b = run(one, EQEQ, steps), run(other, EQEQ, steps)
        close(a.x, b.x, atol=1e-13)
        close(a.y, b.y, atol=1e-13)


def test_eaipod_keeps_the_equations_after_a_projection():
    method = methods.EAiPOD(0.05, 0.5, linear.CG(4), 1, 1, 1.0)
    state = method.init(EQEQ.problem, EQEQ.x0, EQEQ.y0)
    after, _ = method.step(EQEQ.problem, state, Batch())
    assert EQEQ.problem.lower_set.violation(after.y, state.x) < 1e-12
    close(after.r[0], after.r[1], atol=1e-12)  # in the range of Aᵀ


def test_the_answer_of_a_hypergradient_without_its_last_term_is_another():
    """`− (dH/dx)ᵀ (A⁺)ᵀ ∇_y f` left out: x = (½, ½), as circulating code has it; not ours."""
    half = jnp.array([1.0, 0.0])  # of the moving right side: dH/dx = −(1, 0), A⁺ = (½, ½)

    @jax.jit
    def without(x):
        def body(_, x):
            y = EQEQ.y_star(x)
            h = hypergrad.null_space(EQEQ.problem, x, y, linear=linear.CG(4)).grad
            missing = half * (y - 1).mean()  # −(dH/dx)ᵀ (A⁺)ᵀ ∇_y f
            return EQEQ.problem.upper_set.project(x - 0.2 * (h - missing))

        return jax.lax.fori_loop(0, 200, body, x)

    x = without(EQEQ.x0)
    close(x, [0.5, 0.5], atol=1e-9)
    close(EQEQ.value(x), 0.8125, atol=1e-9)
    assert distance(run(AIPOD, EQEQ, 100).x, x) > 0.2


def test_kornowski_on_equations():
    method = methods.KornowskiEq(0.2, 1e-6, lower.ToTolerance(1e-12))
    assert distance(run(method, EQEQ, 60).x, EQEQ.x_star) < 3e-7


def test_the_difference_of_lagrangians_is_off_by_the_order_of_s():
    """By `s/(2 (1 + s))` in each entry at x = (1, 0)."""
    x = jnp.array([1.0, 0.0])
    y = EQEQ.y_star(x)

    @jax.jit
    def off(s):
        h = hypergrad.lagrangian_difference(
            EQEQ.problem, x, (y, y), perturbation=s, solver=lower.ToTolerance(1e-13)
        )
        return abs(h.grad - EQEQ.gradient(x))

    for s in (1e-1, 1e-2, 1e-3, 1e-4):
        close(off(s), s / (2 * (1 + s)), atol=1e-8)


# --- penalties on the value gap: RANK1, PLSIN, SINE ----------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0, 1000.0])
def test_vpbgd_finds_the_closed_form(penalty):
    step = 0.2 / (1 + penalty)
    state = run(methods.VPBGD(step, step, 0.4, penalty, 5), RANK1, int(300 * (1 + penalty)))
    x, y = flat.rank1_penalised(penalty)
    close(state.x, x, atol=1e-11)
    close(state.y, y, atol=1e-11)
    gap = {1.0: 0.125, 10.0: 2.1e-3, 100.0: 2.2e-5, 1000.0: 2.2e-7}[penalty]
    close(RANK1.problem.lower(state.x, state.y, None), gap, atol=0.03 * gap)


@pytest.mark.parametrize(
    ("penalty", "bias"),
    [(1.0, 0.0952381), (10.0, 0.0109290), (100.0, 0.00110926), (1000.0, 0.000111088)],
)
def test_gpbgd_finds_the_closed_form(penalty, bias):
    step = 0.1 / (1 + penalty)
    state = run(methods.GPBGD(step, step, penalty), RANK1, int(300 * (1 + penalty)))
    close(state.x - 7 / 3, bias, atol=1e-7)
    close(state.x, flat.rank1_penalised(2 * penalty)[0], atol=1e-11)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ((0.2, 1.0), 0.38091),
        ((1.0, -3.0), 1.21257),
        ((1.5, 2.0), 0.38091),
        ((2.6, 0.0), 1.21257),
        ((0.7, -2.0), 1.21257),
    ],
)
def test_vpbgd_on_a_nonconvex_valley(start, expected):
    case = started(PLSIN, *start)
    state = run(methods.VPBGD(5e-4, 5e-4, 0.1, 100.0, 10), case, 80_000)
    close(state.x, expected, atol=1e-5)


@pytest.mark.parametrize(("start", "expected"), [((0.2, 1.0), 0.366972), ((1.0, -3.0), 1.188493)])
def test_vpbgd_on_a_nonconvex_valley_with_a_small_penalty(start, expected):
    state = run(methods.VPBGD(5e-3, 5e-3, 0.1, 10.0, 10), started(PLSIN, *start), 20_000)
    close(state.x, expected, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        methods.VPBGD(2e-3, 2e-3, 0.1, 100.0, 10),
        methods.KwonDL(0.05, 0.3, 100.0, 20, 0.5, 0.5),
    ],
    ids=["V-PBGD", "KwonDL"],
)
def test_penalties_among_infinitely_many_minimisers(method):
    state = run(method, SINE, 10_000)
    bias = flat.sine_penalised(100.0)
    close(state.x - flat.SINE_X, bias, atol=1e-8)
    close(state.y - 2 - flat.SINE_X, bias, atol=1e-8)


@pytest.mark.parametrize(
    ("s", "bias"), [(0.1, 0.0215053763), (0.01, 0.0022148394), (0.001, 0.0002221482)]
)
def test_kwon_double_loop(s, bias):
    state = run(methods.KwonDL(0.2, 0.3, 1 / s, 20, 1.0, 0.5), RANK1, 2000)
    close(state.x - 7 / 3, bias, atol=1e-10)
    for y, anchor in zip(state.ys, state.anchors, strict=True):
        close(y, anchor, atol=1e-4)


def test_kwon_single_loop():
    state = run(methods.KwonSL(0.002, 0.3, 100.0), RANK1, 40_000)
    close(state.x - 7 / 3, 0.0022148394, atol=1e-10)


def test_kwon_single_loop_with_noise():
    def with_noise(loss):
        return lambda x, y, noise: loss(x, y, None) + noise[0] * x + noise[1:] @ y

    problem = bl.Problem(with_noise(RANK1.problem.upper), with_noise(RANK1.problem.lower))
    draw = lambda key: 0.1 * jax.random.normal(key, (3,))  # noqa: E731
    data = bl.Data(draw, draw)
    method = methods.KwonSL(0.003, 0.3, 10.0, 0.02)

    @jax.jit
    @jax.vmap
    def last(key):
        state = method.init(problem, RANK1.x0, RANK1.y0)
        return bl.run(problem, method, state, data=data, key=key, steps=50_000)[0].x

    off = last(jax.random.split(jax.random.key(0), 4)) - 7 / 3
    close(off, 0.0215, atol=3 * 0.0092)  # the largest distance of the reference's seeds
    close(off.mean(), 0.0215, atol=5e-3)


@pytest.mark.parametrize(("penalty", "steps"), [(1.0, 5000), (10.0, 20_000)])
def test_meha_with_a_constant_penalty_finds_the_closed_form(penalty, steps):
    state = run(methods.MEHA(0.05, 0.05, 0.1, penalty), RANK1, steps)
    x, y = flat.rank1_moreau(penalty)
    close(state.x, x, atol=1e-11)
    close(state.y, y, atol=1e-11)


def growing(scale):
    return schedules.Polynomial(scale, -0.3)


@pytest.mark.parametrize(
    ("steps", "off", "gap"), [(20_000, 1.3e-3, -5.1e-3), (200_000, 8.5e-4, -2.6e-3)]
)
def test_meha_with_a_growing_penalty(steps, off, gap):
    state = run(methods.MEHA(0.05, 0.05, 0.1, growing(10.0)), RANK1, steps)
    close(state.x - 7 / 3, off, atol=0.05 * off)
    close(state.y.sum() - state.x, gap, atol=0.05 * abs(gap))


def test_meha_among_infinitely_many_minimisers():
    state = run(methods.MEHA(0.02, 0.02, 0.1, growing(5.0), 0.5), SINE, 50_000)
    close(abs(state.x - flat.SINE_X), 8e-3, atol=1e-3)
    close(abs(state.y - 2 - flat.SINE_X), 8e-3, atol=1e-3)


def test_meha_may_stop_where_the_lower_gradient_does_not_vanish():
    """On a nonconvex lower loss: the right answer from one start, a spurious one from another."""
    method = methods.MEHA(0.005, 0.005, 0.03, growing(20.0), 0.1)
    fine = run(method, started(PLSIN, 1.0, -1.5), 200_000)
    close(fine.x - PLSIN.x_star, -1.1e-3, atol=1e-4)
    spurious = run(method, started(PLSIN, 1.0, -3.0), 200_000)
    close([spurious.x, spurious.y + spurious.x], [3.0, -2.265], atol=1e-3)  # x on its bound
    _, told = method.step(PLSIN.problem, spurious, Batch())
    assert told["lower_grad_norm"] > 1


# --- BOME: RANK1, PLSIN, SINE --------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_bome_is_off_by_what_its_lower_steps_leave(steps):
    """With ρ = (1 − 2a)^T left of z's error, x is off by `4ρ/(3 (3 − ρ))`.

    Constant steps end in an oscillation: once q underflows, rounding throws x off by the order of
    a step every few hundred steps, and it returns. The median over the way is the limit.
    """
    method, left = methods.BOME(0.05, 0.05, 0.25, steps, 0.5), 0.5**steps
    state, off = run(method, RANK1, 300), []
    for _ in range(34):
        state = run(method, RANK1, 50, state=state)
        off.append(float(abs(state.x - 7 / 3)))
    limit = 4 * left / (3 * (3 - left))
    if steps == 10:
        close(np.median(off), limit, atol=0.05 * limit)
    assert np.median(off) < 1.1 * limit + 1e-12
    assert off[-1] < {10: 3 * 4.2e-3, 20: 1e-6, 40: 1e-12}[steps]


@pytest.mark.parametrize(("steps", "off", "gap"), [(50, 3e-6, 1e-10), (10, 7.4e-4, 5e-4)])
def test_bome_on_a_nonconvex_valley(steps, off, gap):
    free = bl.Problem(PLSIN.problem.upper, PLSIN.problem.lower)  # x stays well inside its bounds
    case = dataclasses.replace(PLSIN, problem=free)
    state = run(methods.BOME(0.01, 0.01, 0.1, steps, 0.5), case, 20_000)
    assert abs(state.x - PLSIN.x_star) < 1.5 * off
    assert abs(state.x + state.y) < gap


def test_bome_among_infinitely_many_minimisers():
    state = run(methods.BOME(0.02, 0.02, 0.5, 10, 0.5), SINE, 3000)
    close(abs(state.x - flat.SINE_X), 1.7e-4, atol=0.1e-4)


# --- BVFSM and BiG-SAM ---------------------------------------------------------------------------


def test_bvfsm_among_infinitely_many_minimisers():
    """y rests on the barrier: `g − min g = ½ δ²` is the relaxation `θ (1 + ½ ‖z‖²)` at θ = ½/k."""
    state = run(methods.BVFSM(0.02), SINE, 3000)
    delta = state.x + state.y - 2 - 3 * np.pi / 2
    relaxation = 0.5 / 3000 * (1 + float(state.z) ** 2 / 2)
    close(delta, -np.sqrt(2 * relaxation), atol=0.02 * abs(delta))
    assert abs(state.x - flat.SINE_X) < 3 * 1.4e-2
    assert abs(SINE.problem.upper(state.x, state.y, None) - 0.2352) < 0.03


def test_bvfsm_comes_closer_with_a_smaller_slack():
    small = schedules.Polynomial(0.05, 1.0)
    state = run(methods.BVFSM(0.02, slack=small, barrier=small), SINE, 3000)
    assert abs(state.x - flat.SINE_X) < 1.5e-2


@pytest.mark.parametrize(("steps", "off"), [(100, 1.4e-2), (1000, 1.4e-3), (10_000, 1.4e-4)])
def test_sequential_averaging_selects_the_optimistic_lower_solution(steps, off):
    x = jnp.array(2.0)
    found = lower.BiGSAM(0.45, 0.9, 2.0, steps).solve(RANK1.problem, x, RANK1.y0)
    close(abs(found.y.sum() - x) / np.sqrt(2), off, atol=0.03 * off)
    assert distance(found.y, RANK1.y_star(x)) < 1.1 * off
    assert abs(found.value - RANK1.value(x)) < off


# --- Lu and Mei ----------------------------------------------------------------------------------

BOXED = bl.Problem(
    RANK1.problem.upper,
    RANK1.problem.lower,
    upper_set=sets.Box(-5.0, 5.0),
    lower_set=sets.Box(-5.0, 5.0),
)
COUPLE1 = problems.couple1()


def test_the_saddle_solver_on_a_scalar_quadratic():
    """`½ a² + ab − ½ b²` with its saddle at zero: the spec's 28 steps and 7.9e3 gradient pairs."""
    found = saddle(
        lambda a, b: (a + b, a - b),
        jnp.array(3.0),
        jnp.array(-2.0),
        project_a=lambda a: a,
        project_b=lambda b: b,
        convexity=1.0,
        concavity=1.0,
        smoothness=2.0,
        tol=1e-8,
    )
    assert found.residual <= 1e-8
    close([found.a, found.b], 0, atol=1e-8)
    assert abs(int(found.steps) - 28) <= 5
    assert abs(int(found.evaluations) - 7.9e3) < 1e3


def test_the_saddle_solver_on_sets_and_trees():
    """Against the two conditions of a saddle: a best for b, b best for a."""
    A = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    B = jnp.array([[1.0, -0.5], [0.4, 0.8]])

    def h(a, b):
        return a["p"] @ A @ a["p"] / 2 + a["p"] @ B @ b - b @ b / 2 + b.sum() - a["p"].sum()

    field = jax.grad(h, argnums=(0, 1))
    onto = sets.Box(-0.3, 0.2)
    found = saddle(
        field,
        {"p": jnp.zeros(2)},
        jnp.ones(2),
        project_a=onto.project,
        project_b=lambda b: jnp.clip(b, 0.0, 0.7),
        convexity=0.9,
        concavity=1.0,
        smoothness=4.0,
        tol=1e-9,
    )
    d_a, d_b = field(found.a, found.b)
    step = onto.project(jax.tree.map(lambda p, d: p - d, found.a, d_a))
    close(step["p"], found.a["p"], atol=1e-9)
    close(jnp.clip(found.b + d_b, 0.0, 0.7), found.b, atol=1e-9)


@pytest.mark.slow(unless=lambda eps: eps == 0.25)
@pytest.mark.parametrize(
    ("eps", "off", "gap", "steps", "gradients"),
    [(0.25, -4.1e-2, 1.2e-2, 160, 1.0e6), (0.1, -1.5e-2, 2.1e-3, 500, 4.0e6)],
)
def test_lu_and_mei_by_the_theory(eps, off, gap, steps, gradients):
    method = methods.LuMei(eps, methods.TheorySolver(1.0, 3.0, 10 * np.sqrt(2)))

    @jax.jit
    def until_still(state):
        def body(at):
            state, _, total = at
            state, info = method.step(BOXED, state, Batch())
            return state, info["move"], total + info["evaluations"]

        start = state, jnp.array(jnp.inf), jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(lambda at: (at[1] > eps) & (at[0].k < 1000), body, start)

    state, move, total = until_still(method.init(BOXED, RANK1.x0, RANK1.y_star(RANK1.x0)))
    assert move <= eps
    close(state.x - 7 / 3, off, atol=0.1 * abs(off))
    close(RANK1.problem.lower(state.x, state.y, None), gap, atol=0.1 * gap)
    assert abs(int(state.k) - steps) <= 0.1 * steps
    close(float(total), gradients, atol=0.1 * gradients)


@pytest.mark.parametrize("eps", [0.25, 0.1, 0.02])
def test_lu_and_mei_nested_find_the_value_penalty_solution(eps):
    method = methods.LuMei(eps, methods.NestedSolver(0.2 * eps, 0.2 * eps))
    state = run(method, dataclasses.replace(RANK1, problem=BOXED), int(500 / eps))
    x, y = flat.rank1_penalised(1 / eps)
    close(state.x, x, atol=1e-6)
    close(state.y, y, atol=1e-6)


LANDSCAPE = {  # eps: x − 2, violation of y, multiplier
    0.25: (-3.8e-2, 1.3e-1, 3.69),
    0.1: (-5.5e-3, 2.1e-2, 3.95),
    0.05: (-1.3e-3, 5.1e-3, 3.987),
    0.02: (-2.0e-4, 8.1e-4, 3.998),
    0.01: (-5.0e-5, 2.0e-4, 3.9995),
}


@jax.jit
def couple1_penalised(eps):
    """The least of `f + ρ (P(x, y) − min P(x, ·))`, where y > x > 0 it is quadratic."""
    rho, mu = 1 / eps, 1 / eps**2

    def loss(u):
        x, y = u
        P = (y - 2 * x) ** 2 + mu * (y - x) ** 2
        return (x - 1) ** 2 + (y - 3) ** 2 + rho * (P - x**2 * mu / (1 + mu))

    x, y = -jnp.linalg.solve(jax.hessian(loss)(jnp.zeros(2)), jax.grad(loss)(jnp.zeros(2)))
    return x, y, x * (2 + mu) / (1 + mu)


@pytest.mark.parametrize("eps", LANDSCAPE)
def test_lu_and_mei_with_a_lower_constraint_have_the_landscape_of_the_spec(eps):
    x, y, z = couple1_penalised(eps)
    off, violation, multiplier = LANDSCAPE[eps]
    relaxed = penalised(COUPLE1.problem, 1 / eps**2)
    close(jax.grad(relaxed.lower, argnums=1)(x, z, None), 0, atol=1e-7)
    slope_x, slope_y = jax.grad(relaxed.upper, argnums=(0, 1))(x, y, None)
    _, (q_x, q_y) = value_gap(relaxed, x, y, z, None)
    close([slope_x + q_x / eps, slope_y + q_y / eps], 0, atol=1e-8)  # stationary
    close(x - 2, off, atol=0.03 * abs(off))
    close(y - x, violation, atol=0.03 * violation)
    dual = 2 / eps**2 * infeasibility(COUPLE1.problem, x, z)
    close(dual, multiplier, atol=5e-3)


def test_lu_and_mei_nested_with_a_lower_constraint():
    eps = 0.25
    method = methods.LuMei(eps, methods.NestedSolver(3e-3, 3e-3))
    state = run(method, COUPLE1, 4000)
    x, y, z = couple1_penalised(eps)
    close([state.x, state.y, state.z], [x, y, z], atol=1e-6)
    _, info = method.step(COUPLE1.problem, state, Batch())
    close(info["dual"], 3.69, atol=0.01)


def test_lu_and_mei_by_the_theory_take_a_constraint():
    """A few steps come down the penalised loss; the whole way is a matter of 1e9 gradients."""
    problem = bl.Problem(
        COUPLE1.problem.upper,
        COUPLE1.problem.lower,
        upper_set=sets.Box(-5.0, 5.0),
        lower_set=(sets.Box(-5.0, 5.0), COUPLE1.problem.lower_set),
    )
    method = methods.LuMei(0.25, methods.TheorySolver(2.0, 10.0, 10.0, 12.0, max_steps=3000))
    start = method.init(problem, COUPLE1.x0, COUPLE1.y_star(COUPLE1.x0))
    state, info = bl.run(problem, method, start, steps=3)
    assert np.isfinite([state.x, state.y, state.z]).all()
    assert (np.diff(info["upper"]) < 0).all()


def test_a_set_is_parted_into_what_is_projected_on_and_what_is_penalised():
    box, moving, ball = sets.Box(-1.0, 1.0), COUPLE1.problem.lower_set, sets.Ball(2.0)
    problem = bl.Problem(*2 * [COUPLE1.problem.lower], lower_set=(moving, box, ball))
    relaxed = penalised(problem, 3.0)
    assert isinstance(relaxed.lower_set, sets.Box)
    x, y = jnp.array(0.5), jnp.array(2.5)
    expected = (y - 2 * x) ** 2 + 3.0 * ((y - x) ** 2 + (y - 2) ** 2)
    close(relaxed.lower(x, y, None), expected, atol=1e-12)
    close(infeasibility(problem, x, y), np.hypot(2.0, 0.5), atol=1e-12)
    assert penalised(BOXED, 3.0) is BOXED


# --- refusals ------------------------------------------------------------------------------------

ROW = sets.Polyhedron(A=jnp.ones((1, 2)), b=jnp.ones(1))


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        (methods.AiPOD(), ROW),
        (methods.EAiPOD(), ROW),
        (methods.KornowskiEq(), sets.Box(0.0, 1.0)),
        (methods.VPBGD(), EQEQ.problem.lower_set),
        (methods.GPBGD(), sets.Box(0.0, 1.0)),
        (methods.KwonDL(), ROW),
        (methods.KwonSL(), EQEQ.problem.lower_set),
        (methods.MEHA(), EQEQ.problem.lower_set),
        (methods.BVFSM(), sets.Box(0.0, 1.0)),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_is_not_handled_is_refused_with_an_alternative(method, refused):
    problem = bl.Problem(EQEQ.problem.upper, EQEQ.problem.lower, lower_set=refused)
    name, kind = type(method).__name__, type(refused).__name__
    with pytest.raises(methods.Unsupported, match=f"{name} cannot solve.*{kind}.*Methods"):
        method.check(problem)


def test_lu_and_mei_refuse_upper_constraints_that_tie_the_levels():
    problem = bl.Problem(
        EQEQ.problem.upper, EQEQ.problem.lower, upper_set=sets.Coupled(lambda x, y: y)
    )
    with pytest.raises(methods.Unsupported, match=r"LuMei cannot solve.*Coupled"):
        methods.LuMei().check(problem)


def test_settings_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="NestedSolver or TheorySolver"):
        methods.LuMei(0.1, lower.ToTolerance())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="upper_steps is 0"):
        methods.EAiPOD(upper_steps=0)


def test_theory_of_aipod_is_usable():
    constants = bl.certificates.probe(
        bl.Problem(EQEQ.problem.upper, EQEQ.problem.lower), EQEQ.x0, EQEQ.y_star(EQEQ.x0)
    )
    for kind, horizon in ((methods.AiPOD, None), (methods.EAiPOD, 2000)):
        state = run(kind.theory(constants, steps=horizon), EQEQ, 2000)
        assert distance(state.x, EQEQ.x_star) < 0.1 * distance(EQEQ.x0, EQEQ.x_star)


def test_price_of_nested_lu_and_mei_without_its_solve():
    method = methods.LuMei(0.25)
    state = method.init(BOXED, RANK1.x0, RANK1.y0)
    with jax.disable_jit(), oracles.counting() as calls:
        method.step(BOXED, state, Batch())
    known = {name: n for name, n in method.price(BOXED)._asdict().items() if n}
    assert {**calls, "lower_grad": 1} == known
    assert calls["lower_grad"] > 1
