"""Solvers of `H v = b` against dense solves and the reference table of CURV."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import linear, oracles, problems, trees

STEP = 1 / 2.7106  # at most 1/L for CURV at x0


@pytest.fixture(scope="module")
def system():
    """H, b and the solution of CURV at x0 and y*."""
    case = problems.curv()

    @jax.jit
    def build(x):
        y = case.y_star(x)
        h = oracles.dense_hessian(case.problem, x, y, None)
        b = jax.grad(case.problem.upper, argnums=1)(x, y, None)
        return h, b, jnp.linalg.solve(h, b)

    return build(case.x0)


def times(matrix):
    return lambda v, i: matrix @ v


@jax.jit
def solve(solver, h, b, **settings):
    return solver.solve(times(h), b, **settings)


def error(solver, system, **settings):
    h, b, v = system
    return float(np.linalg.norm(solve(solver, h, b, **settings) - v))


def test_the_system_is_the_one_of_the_table(system):
    h, b, v = system
    eigenvalues = [0.493715884275, 1.035220780677, 2.658707023670]
    np.testing.assert_allclose(jnp.linalg.eigvalsh(h), eigenvalues, atol=1e-11)
    np.testing.assert_allclose(b, [-1.885109291627, 3.992691081441, -3.544423590314], atol=1e-11)
    np.testing.assert_allclose(v, [-1.938941360661, 5.901951488486, -8.238331128664], atol=1e-11)


# --- exact solvers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [linear.Dense(), linear.CG(3), linear.CG(50), linear.NormalCG(3), linear.FixedPoint(300, 0.37)],
    ids=repr,
)
def test_exact(solver, system):
    assert error(solver, system) < 1e-11


def test_lineax_solvers(system):
    lineax = pytest.importorskip("lineax")
    assert error(linear.Lineax(lineax.CG(rtol=1e-12, atol=1e-12)), system) < 1e-10
    assert error(linear.Lineax(lineax.LU(), definite=False), system) < 1e-11
    v0 = {"v0": system[2] + 1e-3}
    assert error(linear.Lineax(lineax.CG(rtol=1e-12, atol=1e-12)), system, **v0) < 1e-10


def test_a_missing_lineax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lineax", None)
    with pytest.raises(ImportError, match=r"bilevel\[solvers\]"):
        linear.Lineax(None).solve(times(jnp.eye(2)), jnp.ones(2))


def test_an_indefinite_system(system):
    h, b, _ = system
    shifted = h - 1.5 * jnp.eye(3)
    for solver in (linear.Dense(), linear.NormalCG(3)):
        found = solver.solve(times(shifted), b)
        np.testing.assert_allclose(found, jnp.linalg.solve(shifted, b), rtol=1e-9)


def test_a_singular_system_gets_the_shortest_solution():
    matrix, b = jnp.diag(jnp.array([2.0, 0.0, 1.0])), jnp.array([4.0, 0.0, 3.0])
    np.testing.assert_allclose(linear.NormalCG(5).solve(times(matrix), b), [2, 0, 3], atol=1e-12)


# --- the table ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "expected"),
    [(1, 8.3185), (2, 6.7476), (5, 3.6580), (10, 1.3359), (20, 1.7885e-1), (40, 3.2066e-3)],
)
def test_neumann(terms, expected, system):
    np.testing.assert_allclose(error(linear.Neumann(terms - 1, STEP), system), expected, rtol=5e-5)


def test_eighty_neumann_terms(system):
    np.testing.assert_allclose(error(linear.Neumann(79, STEP), system), 1.0308e-6, rtol=1e-4)


NYSTROM = {
    1.0: (5.08, 5.65, 6.80),
    0.1: (45.7, 33.9, 1.70),
    0.01: (546, 422, 0.200),
    0.001: (5551, 4307, 0.0203),
}


@pytest.mark.parametrize("ridge", NYSTROM)
def test_nystrom(ridge, system):
    found = [error(linear.Nystrom(rank, ridge), system) for rank in (1, 2, 3)]
    np.testing.assert_allclose(found, NYSTROM[ridge], rtol=3e-3)


def test_nystrom_of_full_rank_is_exact_on_the_ridged_system(system):
    h, b, _ = system
    expected = jnp.linalg.solve(h + 0.3 * jnp.eye(3), b)
    for settings in ({}, {"key": jax.random.key(0)}):
        found = linear.Nystrom(3, 0.3).solve(times(h), b, **settings)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nystrom_draws_its_columns_from_the_key(system):
    h, b, _ = system
    found = [solve(linear.Nystrom(1, 1.0), h, b, key=jax.random.key(i)) for i in range(8)]
    assert len({tuple(np.asarray(v).round(8)) for v in found}) == 3


# --- identities ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fixed_point_from_zero_is_a_neumann_series(steps, system):
    h, b, _ = system
    fixed = linear.FixedPoint(steps, STEP).solve(times(h), b)
    series = linear.Neumann(steps - 1, STEP).solve(times(h), b)
    np.testing.assert_allclose(fixed, series, rtol=1e-13)


def draws_of_p(terms, count):
    """For each key, the p that `RandomizedNeumann` draws."""
    keys = jax.random.split(jax.random.key(1), count)
    return keys, jax.vmap(lambda key: jax.random.randint(key, (), 0, terms))(keys)


def test_randomized_neumann_has_the_mean_of_the_series(system):
    """One key for each p makes the expectation a finite sum."""
    h, b, _ = system
    keys, p = draws_of_p(5, 200)
    one_each = keys[jnp.array([int(jnp.argmax(p == value)) for value in range(5)])]
    solver = linear.RandomizedNeumann(5, STEP)
    outcomes = jax.vmap(lambda key: solver.solve(times(h), b, key=key))(one_each)
    series = linear.Neumann(4, STEP).solve(times(h), b)
    np.testing.assert_allclose(outcomes.mean(0), series, rtol=1e-13)


@pytest.mark.parametrize(("terms", "variance"), [(5, 5.7567), (10, 33.265), (20, 130.09)])
def test_randomized_neumann_is_unbiased_with_a_growing_variance(terms, variance, system):
    h, b, _ = system
    keys, _ = draws_of_p(terms, 20_000)
    solver = linear.RandomizedNeumann(terms, STEP)
    drawn = jax.jit(jax.vmap(lambda key: solver.solve(times(h), b, key=key)))(keys)
    series = linear.Neumann(terms - 1, STEP).solve(times(h), b)
    standard_error = drawn.std(0) / np.sqrt(len(keys))
    assert (jnp.abs(drawn.mean(0) - series) < 4 * standard_error).all()
    np.testing.assert_allclose(drawn.var(0).sum(), variance, rtol=0.05)


def test_randomized_neumann_asks_for_a_key(system):
    with pytest.raises(ValueError, match=r"give key=jax\.random\.key"):
        error(linear.RandomizedNeumann(5, STEP), system)


# --- samples ------------------------------------------------------------------------------


def noisy(h):
    """A stack of samples of H, and the operator that reads them."""
    noise = 0.1 * np.random.default_rng(3).normal(size=(6, 3, 3))
    stack = jnp.asarray(np.asarray(h) + noise + noise.transpose(0, 2, 1))
    return stack, lambda v, i: stack[i] @ v


def test_fixed_point_takes_a_fresh_sample_each_step(system):
    h, b, _ = system
    stack, operator = noisy(h)
    v = jnp.zeros(3)
    for matrix in stack[:4]:
        v = v - 0.1 * (matrix @ v - b)
    np.testing.assert_allclose(linear.FixedPoint(4, 0.1).solve(operator, b), v, rtol=1e-13)


def test_neumann_takes_a_fresh_sample_each_factor(system):
    h, b, _ = system
    stack, operator = noisy(h)
    term = total = b
    for matrix in stack[:4]:
        term = term - 0.1 * matrix @ term
        total = total + term
    np.testing.assert_allclose(linear.Neumann(4, 0.1).solve(operator, b), 0.1 * total, rtol=1e-13)


def test_randomized_neumann_takes_a_fresh_sample_each_factor(system):
    h, b, _ = system
    stack, operator = noisy(h)
    keys, p = draws_of_p(6, 5)
    solver = linear.RandomizedNeumann(6, 0.1)
    found = jax.jit(jax.vmap(lambda key: solver.solve(operator, b, key=key)))(keys)
    for v, count in zip(found, p, strict=True):
        product = np.asarray(b)
        for matrix in np.asarray(stack)[: int(count)]:
            product = product - 0.1 * matrix @ product
        np.testing.assert_allclose(v, 6 * 0.1 * product, rtol=1e-13)


@pytest.mark.parametrize(
    "solver",
    [linear.CG(3), linear.NormalCG(3), linear.Dense(), linear.Nystrom(3, 1e-9)],
    ids=repr,
)
def test_solvers_that_need_one_matrix_use_sample_zero(solver, system):
    h, b, _ = system
    stack, operator = noisy(h)
    np.testing.assert_allclose(solver.solve(operator, b), jnp.linalg.solve(stack[0], b), rtol=1e-6)
    assert solver.samples == 1


@pytest.mark.parametrize(
    "solver", [linear.FixedPoint(4), linear.Neumann(4), linear.RandomizedNeumann(5)], ids=repr
)
def test_no_solver_reads_past_the_samples_it_declares(solver):
    largest = []

    def operator(v, i):
        largest.append(int(i))
        return v

    with jax.disable_jit():
        for seed in range(10):
            solver.solve(operator, jnp.ones(2), key=jax.random.key(seed))
    assert max(largest) == solver.samples - 1


# --- starting points and stopping -----------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [linear.CG(1), linear.NormalCG(1), linear.FixedPoint(1, 0.1)], ids=repr
)
def test_a_warm_start_at_the_solution_stays_there(solver, system):
    assert error(solver, system, v0=system[2]) < 1e-12 < error(solver, system)


def test_cg_stops_at_its_tolerance(system):
    h, b, _ = system
    rough = linear.CG(3, tol=0.5).solve(times(h), b)
    assert 1e-3 < jnp.linalg.norm(h @ rough - b) <= 0.5 * jnp.linalg.norm(b)


@pytest.mark.parametrize("solver", [linear.CG(500), linear.NormalCG(500)], ids=repr)
@pytest.mark.parametrize("v0", [None, 1.0], ids=["cold", "warm"])
def test_a_zero_right_hand_side_gives_zero(solver, v0, system):
    h = system[0].astype(jnp.float32)
    start = None if v0 is None else jnp.full(3, v0, jnp.float32)
    found = solver.solve(times(h), jnp.zeros(3, jnp.float32), v0=start)
    np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_cg_may_take_many_more_steps_than_there_are_unknowns(dtype, condition):
    matrix = jnp.diag(jnp.logspace(0, jnp.log10(condition), 5)).astype(dtype)
    found = solve(linear.CG(500), matrix, jnp.ones(5, dtype))
    accuracy = 10 * condition * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        found, 1 / jnp.diag(matrix), rtol=max(accuracy, 1e-12), atol=accuracy
    )


# --- trees, dtypes, transformations ---------------------------------------------------------

ALL = {
    "Dense": linear.Dense(),
    "CG": linear.CG(20),
    "NormalCG": linear.NormalCG(20),
    "Nystrom": linear.Nystrom(3, 1e-3),
    "FixedPoint": linear.FixedPoint(60, jnp.float64(0.3)),
    "Neumann": linear.Neumann(60, jnp.float64(0.3)),
    "RandomizedNeumann": linear.RandomizedNeumann(1, jnp.float64(0.5)),
}


def twice(v, i):
    """`H = 2 I`, on any tree."""
    return jax.tree.map(lambda leaf: leaf + leaf, v)


@pytest.mark.parametrize("name", ALL)
def test_nested_trees_of_mixed_dtypes(name):
    single, double = jnp.ones(2, jnp.float32), jnp.ones((), jnp.float64)
    b = {"u": jnp.ones((), jnp.bfloat16), "w": (single, double)}
    solver = linear.Nystrom(4, 1e-3) if name == "Nystrom" else ALL[name]
    found = solver.solve(twice, b, key=jax.random.key(0))
    assert jax.tree.map(jnp.result_type, found) == jax.tree.map(jnp.result_type, b)
    np.testing.assert_allclose(ravel_pytree(trees.widen(found))[0], 0.5, rtol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_solve(name):
    assert ALL[name].solve(twice, {}, key=jax.random.key(0)) == {}


SMOOTH = ["Dense", "CG", "NormalCG", "FixedPoint", "Neumann"]


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_in_both_modes(name, system):
    """`∂/∂s of H(s)⁻¹ b(s)` with `H(s) = H + s I`, `b(s) = s b`, at s = 1."""
    h, b, _ = system

    def solution(s):
        return ALL[name].solve(lambda v, i: h @ v + s * v, s * b)

    shifted = h + jnp.eye(3)
    v = jnp.linalg.solve(shifted, b)
    expected = jnp.linalg.solve(shifted, b - v)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(solution))(1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(solution))(1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_family_of_systems_is_one_vmap(name, system):
    h, b, _ = system
    shifts = jnp.array([0.0, 1.0])

    def solution(s):
        return ALL[name].solve(lambda v, i: h @ v + s * v, b, key=jax.random.key(0))

    swept = jax.jit(jax.vmap(solution))(shifts)
    np.testing.assert_allclose(swept[1], jax.jit(solution)(shifts[1]), rtol=1e-8)


def test_a_sweep_over_settings(system):
    h, b, _ = system
    sizes = jnp.array([0.1, 0.3])
    swept = jax.vmap(lambda a: linear.Neumann(5, a).solve(times(h), b))(sizes)
    np.testing.assert_allclose(swept[1], linear.Neumann(5, 0.3).solve(times(h), b), rtol=1e-13)


@pytest.mark.parametrize(
    ("solver", "products"),
    [(linear.FixedPoint(7), 7), (linear.Neumann(7), 7), (linear.RandomizedNeumann(7), 3)],
    ids=repr,
)
def test_products_are_counted(solver, products):
    calls = []

    def operator(v, i):
        calls.append(i)
        return v

    keys = jax.random.split(jax.random.key(0), 40)
    with jax.disable_jit():
        for key in keys:
            solver.solve(operator, jnp.ones(()), key=key)
    assert solver.products == products
    np.testing.assert_allclose(len(calls) / len(keys), products, rtol=0.3)
