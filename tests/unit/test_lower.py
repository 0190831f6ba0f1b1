"""Solvers of the lower problem, their stopping, and derivatives of the solution map."""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import bilevel as bl
from bilevel import Problem, linear, lower, problems, sets, updates
from bilevel.problem import RepeatedBatch, Stacked

QUAD = problems.quad()


@functools.partial(jax.jit, static_argnames="max_steps")
def _solve(solver, problem, x, y0, max_steps=None):
    return solver.solve(problem, x, y0)


def solve(solver, case):
    return _solve(solver, case.problem, case.x0, case.y0)


def diagonal(condition, dtype=jnp.float64):
    """`g = ½ y'Dy − x·1'y`, whose minimiser is `x / D`."""
    d = jnp.logspace(0, np.log10(condition), 10).astype(dtype)
    loss = Partial(lambda d, x, y, batch: jnp.sum(d * y * y) / 2 - x * jnp.sum(y), d)
    return Problem(lambda x, y, batch: jnp.sum(y), loss), 1 / d


# --- a fixed number of steps --------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        lower.Gradient(0.4, 200),
        lower.Gradient(updates.Momentum(0.3, 0.5), 100),
        lower.Accelerated(2.3, 0.4, 80),
        lower.Accelerated(jnp.float32(2.3), jnp.float64(0.4), 80),
    ],
    ids=["gradient", "momentum", "accelerated", "accelerated, mixed"],
)
def test_a_fixed_number_of_steps(solver):
    found = solve(solver, QUAD)
    np.testing.assert_allclose(found.y, QUAD.y_star(QUAD.x0), rtol=1e-9)
    assert found.residual < 1e-8
    assert found.steps == solver.steps


def test_gradient_steps_are_gradient_steps():
    y = QUAD.y0
    for _ in range(3):
        y = y - 0.2 * jax.grad(QUAD.problem.lower, argnums=1)(QUAD.x0, y, None)
    np.testing.assert_allclose(solve(lower.Gradient(0.2, 3), QUAD).y, y, rtol=1e-14)


def test_the_loss_gap_of_accelerated_shrinks_at_its_rate():
    condition, steps = 100.0, 60
    problem, y_star = diagonal(condition)
    x, y0 = jnp.array(1.0), jnp.zeros(10)
    gap = lambda y: problem.lower(x, y, None) - problem.lower(x, y_star, None)  # noqa: E731
    found = lower.Accelerated(condition, 1.0, steps).solve(problem, x, y0)
    bound = (gap(y0) + jnp.sum((y0 - y_star) ** 2) / 2) * (1 - 1 / np.sqrt(condition)) ** steps
    assert gap(found.y) <= bound


@pytest.mark.parametrize(
    "solver",
    [lower.Gradient(0.4, 60), lower.Accelerated(2.3, 0.4, 60)],
    ids=["gradient", "accelerated"],
)
def test_a_fixed_number_of_steps_is_differentiable_in_both_modes(solver):
    def y(x):
        return solver.solve(QUAD.problem, x, QUAD.y0).y

    expected = jax.jacobian(QUAD.y_star)(QUAD.x0)
    np.testing.assert_allclose(jax.jit(jax.jacrev(y))(QUAD.x0), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(y))(QUAD.x0), expected, rtol=1e-3, atol=1e-4)


# --- to a tolerance -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [problems.quad, problems.curv, problems.nested], ids=lambda make: make.__name__
)
def test_double_precision_reaches_ten_digits(make):
    case = make()
    found = solve(lower.ToTolerance(1e-10), case)
    assert found.residual <= 1e-10
    distance = jax.tree.map(
        lambda a, b: jnp.sum((a - b) ** 2), found.y, jax.jit(case.y_star)(case.x0)
    )
    assert sum(jax.tree.leaves(distance)) ** 0.5 <= 1e-10 / case.lower_mu + 1e-14


def test_single_precision_stops_at_rounding():
    found = solve(lower.ToTolerance(0.0), problems.quad(jnp.float32))
    assert found.y.dtype == jnp.float32
    assert found.steps < 1000
    np.testing.assert_allclose(found.y, QUAD.y_star(QUAD.x0), rtol=1e-5)


@pytest.mark.parametrize("first_step", [1e-4, 1.0, 1e4])
def test_a_badly_scaled_problem(first_step):
    problem, y_star = diagonal(1e4)
    solver = lower.ToTolerance(1e-10, first_step=first_step)
    found = _solve(solver, problem, jnp.array(1.0), jnp.zeros(10))
    assert found.residual <= 1e-10
    assert found.steps < 5000
    np.testing.assert_allclose(found.y, y_star, atol=1e-10)


def test_a_badly_scaled_problem_in_single_precision():
    problem, y_star = diagonal(1e4, jnp.float32)
    found = _solve(lower.ToTolerance(), problem, jnp.float32(1), jnp.zeros(10, jnp.float32))
    assert found.steps < 5000
    np.testing.assert_allclose(found.y, y_star, atol=1e-4)


def test_it_returns_the_best_iterate_it_saw():
    found = solve(lower.ToTolerance(0.0), QUAD)
    assert found.residual == lower.solvers.residual(QUAD.problem, QUAD.x0, found.y, None)
    assert found.residual < 1e-14


def test_it_stops_at_the_allowed_number_of_steps():
    problem, _ = diagonal(1e4)
    found = _solve(lower.ToTolerance(1e-10, max_steps=7), problem, jnp.array(1.0), jnp.zeros(10))
    assert found.steps == 7


def test_a_solved_problem_takes_no_step():
    found = QUAD.problem, QUAD.x0, QUAD.y_star(QUAD.x0)
    assert lower.ToTolerance(1e-8).solve(*found).steps == 0


def test_a_loss_that_overflows_ends_the_search():
    steep = Problem(lambda x, y, b: y, lambda x, y, b: jnp.exp(y * y) - y)
    found = lower.ToTolerance(1e-10, first_step=1e3).solve(steep, 0.0, jnp.array(3.0))
    assert found.residual <= 1e-10
    hopeless = Problem(lambda x, y, b: y, lambda x, y, b: jnp.log(y))
    found = lower.ToTolerance().solve(hopeless, 0.0, jnp.array(-1.0))
    assert found.steps <= 10_000


def test_one_vmap_solves_a_family():
    xs = jnp.array([[1.0, -1.0], [0.0, 0.0], [100.0, 3.0]])
    solver = lower.ToTolerance(1e-10)
    found = jax.jit(jax.vmap(lambda x: solver.solve(QUAD.problem, x, QUAD.y0)))(xs)
    assert (found.residual <= 1e-10).all()
    assert len(set(found.steps.tolist())) == 3
    np.testing.assert_allclose(found.y, jax.vmap(QUAD.y_star)(xs), atol=1e-9)


@pytest.mark.parametrize("x", [[0.5, -0.5], [4.0, 0.5]], ids=["inactive", "active"])
@pytest.mark.parametrize(
    "solver",
    [lower.ToTolerance(1e-10), lower.Gradient(0.3, 200), lower.Accelerated(3.0, 1.0, 100)],
    ids=["to tolerance", "gradient", "accelerated"],
)
def test_a_lower_set_is_respected(solver, x):
    case = problems.lower_box()
    found = _solve(solver, case.problem, jnp.array(x), case.y0)
    np.testing.assert_allclose(found.y, case.y_star(jnp.array(x)), atol=1e-9)
    assert found.residual < 1e-9


def test_half_precision_of_y_with_a_single_precision_loss():
    def loss(x, y, batch):
        return jnp.sum((y.astype(jnp.float32) - x) ** 2)

    found = lower.ToTolerance(1e-2).solve(
        Problem(loss, loss), jnp.float32(0.5), jnp.zeros(3, jnp.bfloat16)
    )
    assert found.y.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.y.astype(float), 0.5, rtol=1e-2)


# --- optimistix ---------------------------------------------------------------------------


def test_bfgs():
    optimistix = pytest.importorskip("optimistix")
    case = problems.curv()
    solver = lower.Optimistix(optimistix.BFGS(rtol=1e-10, atol=1e-10))
    found = solver.solve(case.problem, case.x0, case.y0)
    np.testing.assert_allclose(found.y, case.y_star(case.x0), atol=1e-8)
    assert found.residual < 1e-7
    assert 0 < found.steps < 100


def test_without_optimistix_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optimistix", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[solvers\]'"):
        lower.Optimistix(None).solve(QUAD.problem, QUAD.x0, QUAD.y0)


# --- the solution as a function -------------------------------------------------------------

EXACT = lower.ToTolerance(1e-13)


def y_of(x, case=QUAD, **settings):
    return lower.argmin(case.problem, x, case.y0, solver=EXACT, **settings)


@pytest.mark.parametrize("make", [problems.quad, problems.curv], ids=["quad", "curv"])
def test_argmin_and_its_jacobian_in_both_modes(make):
    case = make()
    y = functools.partial(y_of, case=case)
    expected = jax.jit(jax.jacobian(case.y_star))(case.x0)
    np.testing.assert_allclose(jax.jit(y)(case.x0), jax.jit(case.y_star)(case.x0), atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacrev(y))(case.x0), expected, atol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(y))(case.x0), expected, atol=1e-10)


@pytest.mark.parametrize(
    "solver", [linear.Dense(), linear.NormalCG(5), linear.Neumann(200, 0.4)], ids=repr
)
def test_argmin_with_any_linear_solver(solver):
    found = jax.jit(jax.jacrev(functools.partial(y_of, linear=solver)))(QUAD.x0)
    np.testing.assert_allclose(found, jax.jacobian(QUAD.y_star)(QUAD.x0), rtol=1e-9, atol=1e-12)


def test_argmin_has_second_derivatives():
    case = problems.curv()

    def value(x):
        return case.problem.upper(x, y_of(x, case), None)

    expected = jax.jit(jax.jacfwd(jax.grad(case.value)))(case.x0)
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(case.x0), expected, rtol=1e-8)


def test_argmin_on_trees_and_any_solver():
    case = problems.nested()
    solver = lower.Gradient(0.4, 300)

    def value(x):
        return case.problem.upper(x, lower.argmin(case.problem, x, case.y0, solver=solver), None)

    found, expected = jax.jit(jax.grad(value))(case.x0), case.gradient(case.x0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), found, expected)


def weighted(weight, x, y, batch):
    """Minimised at `y = (weight + Σ batch) x`."""
    return jnp.sum((y - (weight + jnp.sum(batch["rows"])) * x) ** 2) / 2


def test_derivatives_with_respect_to_the_problem_and_the_batch():
    batch = {"rows": jnp.array([1.0, 2.0]), "labels": jnp.array([3, 4])}  # integers may ride along

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def value(weight, x, rows):
        problem = Problem(weighted, Partial(weighted, weight))
        return lower.argmin(problem, x, jnp.array(0.0), {**batch, "rows": rows}, solver=EXACT)

    y, (by_weight, by_x, by_rows) = value(jnp.array(0.5), jnp.array(2.0), batch["rows"])
    np.testing.assert_allclose(y, 7.0)
    np.testing.assert_allclose(by_weight, 2.0)
    np.testing.assert_allclose(by_x, 3.5)
    np.testing.assert_allclose(by_rows, [2.0, 2.0])


def test_derivatives_with_respect_to_what_a_loss_closes_over():
    def y(weight):
        loss = lambda x, y, batch: (y - weight * x) ** 2 / 2  # noqa: E731
        return lower.argmin(Problem(loss, loss), 3.0, jnp.array(0.0), solver=EXACT)

    np.testing.assert_allclose(jax.grad(y)(2.0), 3.0)
    np.testing.assert_allclose(jax.jacfwd(y)(2.0), 3.0)


def test_the_start_does_not_matter_to_the_derivative():
    slope = jax.grad(lambda y0: jnp.sum(lower.argmin(QUAD.problem, QUAD.x0, y0)))(QUAD.y0)
    np.testing.assert_array_equal(slope, 0)


def test_argmin_under_vmap():
    xs = jnp.array([[1.0, -1.0], [0.0, 2.0]])
    found = jax.jit(jax.vmap(jax.jacrev(y_of)))(xs)
    expected = jax.jacobian(QUAD.y_star)(QUAD.x0)
    np.testing.assert_allclose(found, jnp.stack([expected, expected]), atol=1e-9)


@pytest.mark.parametrize("x", [[0.5, -0.5], [4.0, 0.5]], ids=["inside", "on a side"])
def test_argmin_through_a_lower_set(x):
    case, x = problems.lower_box(), jnp.array(x)
    slope = jax.jit(jax.jacrev(functools.partial(y_of, case=case)))(x)
    np.testing.assert_allclose(slope, jax.jit(jax.jacobian(case.y_star))(x), atol=1e-9)


# --- the inner loop of the sampled methods ---------------------------------------------------


def descend(problem, y, samples, steps, update=0.5, k=0):
    update = updates.as_update(update)
    memory = lower.lower_step(problem, update).init(problem, 0.0, y)
    return lower.descend(problem, 0.0, y, samples, update=update, memory=memory, steps=steps, k=k)


def toward(x, y, batch):
    return (y - batch) ** 2 / 2


@pytest.mark.parametrize("steps", [1, 3])
def test_each_step_takes_its_own_sample(steps):
    batches = jnp.array([1.0, 2.0, 3.0])
    found = descend(Problem(toward, toward), jnp.array(0.0), Stacked(batches), steps)
    y = 0.0
    for batch in batches[:steps]:
        norm, y = abs(y - batch), y - 0.5 * (y - batch)
    np.testing.assert_allclose(found.y, y)
    np.testing.assert_allclose(found.grad_norm, norm)


def test_every_step_is_projected():
    problem = Problem(toward, toward, lower_set=sets.Box(-0.1, 0.1))
    np.testing.assert_allclose(descend(problem, jnp.array(0.0), RepeatedBatch(1.0), 3).y, 0.1)


def test_schedules_see_the_outer_step():
    half_each = lambda k: 0.5 / (k + 1)  # noqa: E731
    found = descend(Problem(toward, toward), jnp.array(1.0), RepeatedBatch(0.0), 2, half_each, k=1)
    np.testing.assert_allclose(found.y, 0.75**2)


def halve(x, y, batch, rate=0.5):
    return rate * y


class Counting(eqx.Module):
    """A trainer with memory: moves by an array of its own, and counts."""

    move: jax.Array

    def init(self, x, y):
        return jnp.array(0)

    def __call__(self, x, y, memory, batch):
        return y + self.move, memory + 1


class Forgetful:
    """A trainer whose memory is `None`."""

    def init(self, x, y):
        return None

    def __call__(self, x, y, memory, batch):
        assert memory is None
        return y / 2, memory


@pytest.mark.parametrize(
    ("step", "y", "memory"),
    [
        (halve, 2.0, None),
        (functools.partial(halve, rate=0.25), 0.5, None),
        (Partial(halve, rate=jnp.array(0.25)), 0.5, None),
        (Counting(jnp.array(1.0)), 10.0, 2),
        (Forgetful(), 2.0, None),
    ],
    ids=["function", "partial", "pytree partial", "with memory", "with empty memory"],
)
def test_a_declared_step_is_taken(step, y, memory):
    problem = Problem(toward, toward, lower_step=step)
    found = descend(problem, jnp.array(8.0), RepeatedBatch(None), 2)
    np.testing.assert_allclose(found.y, y)
    assert found.memory == memory


def test_a_declared_step_reports_its_length_and_keeps_the_dtype():
    problem = Problem(toward, toward, lower_step=lambda x, y, batch: y.astype(jnp.float64) / 2)
    found = descend(problem, jnp.array(8.0, jnp.float32), RepeatedBatch(None), 2)
    assert found.y.dtype == jnp.float32
    assert found.grad_norm == 2


# --- longer stochastic descents ---------------------------------------------------------------


def refined(refinement, case, samples, y0=None, step=0.1):
    update = bl.updates.SGD(step)
    y0 = case.y0 if y0 is None else y0
    return refinement.descend(
        case.problem, case.x0, y0, samples, update=update, memory=update.init(y0), k=0
    )


def noisy_rows(key, case):
    """Single rows of the lower data, drawn independently."""
    return bl.Data(*case.data, batch_size=1, order="replacement").lower.feed(key).draw(0, 2000)


def test_a_refinement_without_a_ball_is_plain_descent_or_its_mean():
    case, nothing = problems.quad(), bl.RepeatedBatch(None)
    ys = [case.y0]
    for _ in range(7):
        g_y = bl.oracles.lower_grad(case.problem, case.x0, ys[-1], None)
        ys.append(ys[-1] - 0.1 * g_y)
    last, mean = (refined(lower.BallSGD(7, average=a), case, nothing).y for a in (False, True))
    np.testing.assert_allclose(last, ys[-1], rtol=1e-13)
    np.testing.assert_allclose(mean, jnp.mean(jnp.stack(ys[1:]), 0), rtol=1e-13)


def test_a_ball_about_the_start_is_never_left():
    case = problems.quad()
    away = refined(lower.BallSGD(100), case, bl.RepeatedBatch(None)).y
    assert jnp.linalg.norm(away - case.y0) > 0.5
    held = refined(lower.BallSGD(100, radius=0.2), case, bl.RepeatedBatch(None)).y
    np.testing.assert_allclose(jnp.linalg.norm(held - case.y0), 0.2, rtol=1e-12)
    start = away + 0.01
    ended = refined(lower.BallSGD(400, radius=0.2), case, bl.RepeatedBatch(None), y0=start).y
    np.testing.assert_allclose(ended, case.y_star(case.x0), atol=1e-8)  # it lies inside


def test_epochs_halve_the_step_double_the_length_and_start_at_the_mean():
    case, nothing = problems.quad(), bl.RepeatedBatch(None)
    y = case.y0
    for steps, step in ((3, 0.1), (6, 0.05), (12, 0.025)):
        y = refined(lower.BallSGD(steps, average=True), case, nothing, y0=y, step=step).y
    epochs = lower.EpochSGD(3, epochs=3)
    assert epochs.steps == 21
    np.testing.assert_allclose(refined(epochs, case, nothing).y, y, rtol=1e-12)


def test_epochs_take_other_samples_and_leave_less_noise_than_constant_steps():
    case = problems.quad_noise()
    target = case.y_star(case.x0)

    def errors(refinement):
        def one(key):
            end = refined(refinement, case, noisy_rows(key, case), step=0.2)
            return ((end.y - target) ** 2).sum()

        return float(jax.vmap(one)(jax.random.split(jax.random.key(0), 32)).mean())

    assert errors(lower.EpochSGD(50, epochs=5)) < 0.2 * errors(lower.BallSGD(1550))
