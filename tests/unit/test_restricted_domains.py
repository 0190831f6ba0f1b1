"""Lower losses that are finite on a part of the space only, and lower solves that do not finish."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import certificates, lower, sets
from bilevel.certificates import Verdict
from bilevel.problem import Problem

BARRIER = Problem(lambda x, y, b: (y - 0.1) ** 2, lambda x, y, b: x * y - jnp.log(y))  # y* = 1/x
SOLVERS = [lower.ToTolerance(1e-10), lower.NewtonCG(1e-10)]


def entropic(temperature, **sets):
    """`−x·y + t Σ y log y`: over the simplex a softmax of x/t."""
    return Problem(
        lambda x, y, b: y[0],
        lambda x, y, b: -(x @ y) + temperature * jnp.sum(y * jnp.log(y)),
        **sets,
    )


def softmax(z):
    z = np.exp(z - np.max(z))
    return z / z.sum()


@pytest.mark.parametrize("solver", SOLVERS, ids=["to tolerance", "newton"])
@pytest.mark.parametrize("start", [1.0, 100.0, 1e-3])
def test_steps_do_not_leave_the_domain_of_the_loss(solver, start):
    found = jax.jit(lambda y: solver.solve(BARRIER, 3.0, y))(jnp.array(start))
    np.testing.assert_allclose(found.y, 1 / 3, rtol=1e-10)
    assert found.residual <= 1e-10


def test_steps_do_not_jump_over_a_hill_to_a_higher_place():
    """From 0.3 a step of length one leads into a worse valley of `cos(5y) + y²/10`."""
    wavy = Problem(lambda x, y, b: y, lambda x, y, b: jnp.cos(5 * y) + 0.1 * y**2)
    found = lower.ToTolerance(1e-10).solve(wavy, 0.0, jnp.array(0.3))
    assert found.residual <= 1e-10
    assert np.cos(5 * found.y) + 0.1 * found.y**2 < np.cos(1.5) + 0.1 * 0.3**2


def test_a_start_outside_of_the_domain_is_no_solution():
    """At −1/x the gradient `x − 1/y` of the formula is 2 x, and its sign is no reason to move."""
    assert lower.ToTolerance().solve(BARRIER, 3.0, jnp.array(-1 / 3)).residual == jnp.inf
    boxed = BARRIER.replace(lower_set=sets.Box(0.1, 5.0))
    found = lower.ToTolerance(1e-10).solve(boxed, 3.0, jnp.array(-1.0))
    np.testing.assert_allclose(found.y, 1 / 3, rtol=1e-10)  # its projection is inside


def test_entropy_on_a_simplex_and_its_jacobian():
    x = jnp.array([1.0, 0, 0, 0, -1])
    problem, y = entropic(0.5, lower_set=sets.Simplex()), softmax(2 * np.asarray(x))
    solution = functools.partial(lower.argmin, problem, y0=jnp.full(5, 0.2))
    np.testing.assert_allclose(solution(x), y, atol=1e-7)
    found = jax.jit(jax.jacrev(solution))(x)
    np.testing.assert_allclose(found, 2 * (np.diag(y) - np.outer(y, y)), atol=1e-6)


def test_sqp_is_not_caught_at_a_bound_that_is_not_active():
    """Two entropic rows with sums of one, inside a box: a softmax each, with entries of 3e-4."""
    pytest.importorskip("qpax")
    rows = sets.Polyhedron(A=jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), b=jnp.ones(2))
    problem = entropic(0.1, lower_set=(sets.Box(0.0, 1.0), rows))
    x = jnp.array([0.1, 0.9, 0.4, 0.5])
    found = lower.SQP().solve(problem, x, jnp.full(4, 0.4))
    expected = np.concatenate([softmax(np.array([1.0, 9.0])), softmax(np.array([4.0, 5.0]))])
    np.testing.assert_allclose(found.y, expected, rtol=1e-6)
    assert found.residual < 1e-9
    np.testing.assert_array_equal(found.active, [False] * 8 + [True] * 2)


# --- what was not finished --------------------------------------------------------------------

SHORT = lower.ToTolerance(max_steps=2)


def messages(fn, *args) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jax.block_until_ready(fn(*args))
        jax.effects_barrier()
    return [str(one.message) for one in told if issubclass(one.category, UserWarning)]


def test_argmin_says_that_a_solve_was_not_finished():
    def y(x, solver=SHORT, **settings):
        return lower.argmin(BARRIER, x, jnp.array(1.0), solver=solver, **settings)

    (told,) = messages(jax.jit(jax.grad(y)), 3.0)
    assert told.startswith("argmin: ToTolerance did not finish the lower solve")
    assert messages(jax.grad(functools.partial(y, solver=SOLVERS[0])), 3.0) == []
    found, residual = y(3.0, return_residual=True)
    np.testing.assert_allclose(residual, abs(3 - 1 / found))
    with pytest.raises(RuntimeError, match="did not finish the lower solve"):
        jax.block_until_ready(y(3.0, throw=True))
    np.testing.assert_allclose(jax.grad(y)(3.0, solver=SOLVERS[0], throw=True), -1 / 9)


@pytest.mark.parametrize("solver", [lower.ToTolerance(0.0), lower.NewtonCG(0.0)], ids=["1", "2"])
def test_a_solve_to_rounding_is_finished_in_single_precision(solver):
    rows = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    loss = lambda x, y, b: jnp.mean((b @ y - x) ** 2)  # noqa: E731
    x, y0 = jnp.float32(3.0), jnp.zeros(5, jnp.float32)
    solution = functools.partial(lower.argmin, Problem(loss, loss), solver=solver)
    assert messages(solution, x, y0, jnp.asarray(rows)) == []


def test_a_right_hypergradient_is_not_called_wrong_where_y_did_not_move():
    right = jnp.array(-2 / 9 * (1 / 3 - 0.1))  # at y* = 1/3; y stays at one
    stuck = lower.Gradient(1e-30, steps=1)
    check = functools.partial(
        certificates.check_hypergradient, BARRIER, jnp.array(3.0), jnp.array(1.0), estimate=right
    )
    assert check().verdict is Verdict.AGREES
    assert check(solver=stuck).verdict is Verdict.UNDECIDED
