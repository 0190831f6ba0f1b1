"""Hypergradients against closed forms, central differences and the reference table of CURV."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import Batch, Problem, hypergrad, linear, lower, problems, sets, updates
from bilevel.problem import Stacked

STEP = 1 / 2.7106  # at most 1/L for CURV at x0
GRAD = np.array([11.766004712709, -12.876659777570])  # the hypergradient of CURV at x0
EXACT = lower.ToTolerance(1e-13)


@pytest.fixture(scope="module")
def curv():
    """CURV, x0, and y* at x0."""
    case = problems.curv()
    return case.problem, case.x0, jax.jit(case.y_star)(case.x0)


STATIC = ("order", "steps", "back", "checkpoint")


@functools.partial(jax.jit, static_argnums=0, static_argnames=STATIC)
def compiled(estimator, problem, x, y, **settings):
    return estimator(problem, x, y, **settings)


def error(estimator, at, **settings):
    return float(np.linalg.norm(compiled(estimator, *at, **settings).grad - GRAD))


# --- the table ----------------------------------------------------------------------------


def test_the_point_is_the_one_of_the_table(curv):
    np.testing.assert_allclose(
        curv[2], [-1.108231654387, 2.340737630979, -2.612732276556], atol=1e-11
    )


@pytest.mark.parametrize("solver", [linear.Dense(), linear.CG(3), linear.CG(50)], ids=repr)
def test_exact_with_an_exact_solve(solver, curv):
    h = compiled(hypergrad.implicit, *curv, linear=solver)
    np.testing.assert_allclose(h.grad, GRAD, atol=1e-11)
    np.testing.assert_allclose(h.v, [-1.938941360661, 5.901951488486, -8.238331128664], atol=1e-11)
    np.testing.assert_allclose(h.value, curv[0].upper(curv[1], curv[2], None), rtol=1e-14)
    assert h.residual < 1e-11


@pytest.mark.parametrize(("steps", "expected"), [(1, 1.7218), (2, 3.5552e-1)])
def test_few_steps_of_cg(steps, expected, curv):
    found = error(hypergrad.implicit, curv, linear=linear.CG(steps))
    np.testing.assert_allclose(found, expected, rtol=5e-5)


NEUMANN = {1: 11.859, 2: 9.3707, 5: 4.8126, 10: 1.6956, 20: 0.22434, 40: 4.0191e-3, 80: 1.2919e-6}
UNROLLED = {1: 14.242, 2: 11.579, 5: 6.7161, 10: 2.9814, 20: 0.55908, 40: 1.5903e-2, 80: 8.9234e-6}


@pytest.mark.parametrize(("terms", "expected"), NEUMANN.items())
def test_neumann(terms, expected, curv):
    found = error(hypergrad.neumann, curv, steps=terms - 1, step_size=STEP)
    np.testing.assert_allclose(found, expected, rtol=5e-5)


@pytest.mark.parametrize(("steps", "expected"), UNROLLED.items())
def test_unrolled(steps, expected, curv):
    problem, x, _ = curv
    found = error(hypergrad.unrolled, (problem, x, jnp.zeros(3)), update=STEP, steps=steps)
    np.testing.assert_allclose(found, expected, rtol=5e-5)


@pytest.mark.parametrize(
    ("back", "expected"), [(1, 11.859), (5, 4.8138), (10, 1.6980), (20, 2.2939e-1)]
)
def test_truncated(back, expected, curv):
    at = (*curv[:2], jnp.zeros(3))
    found = error(hypergrad.unrolled, at, update=STEP, steps=40, back=back)
    np.testing.assert_allclose(found, expected, rtol=5e-5)


VALUE_DIFFERENCE = [
    (1, {10: 3.2529, 100: 4.1101e-1, 1e3: 4.2091e-2, 1e4: 4.2191e-3}, 5e-5),
    (2, {10: 9.5906e-1, 100: 1.1060e-2, 1e3: 1.1078e-4, 1e4: 1.1078e-6}, 1e-3),
    (3, {25: 1.5651e-2, 50: 1.7189e-3, 100: 1.8984e-4}, 5e-5),
    (4, {25: 1.7055e-2, 50: 1.1725e-3, 100: 7.4208e-5}, 5e-5),
]


@pytest.mark.parametrize(("order", "table", "rtol"), VALUE_DIFFERENCE, ids=["1", "2", "3", "4"])
def test_value_difference(order, table, rtol, curv):
    for penalty, expected in table.items():
        found = error(
            hypergrad.value_difference, curv, penalty=float(penalty), order=order, solver=EXACT
        )
        np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize(
    ("distance", "expected"), [(0.1, 4.5978e-1), (0.01, 4.5846e-2), (0.001, 4.5832e-3)]
)
def test_the_error_is_linear_in_the_distance_to_the_solution(distance, expected, curv):
    problem, x, y = curv
    away = y + distance * jnp.array([1.0, -1.0, 1.0]) / np.sqrt(3)
    found = error(hypergrad.implicit, (problem, x, away), linear=linear.Dense())
    np.testing.assert_allclose(found, expected, rtol=5e-5)


ONE_STEP = np.array([1.138243058683, -0.874768256958])


def test_one_step(curv):
    h = compiled(hypergrad.one_step, *curv[:2], jnp.full(3, 0.3), step_size=0.1)
    np.testing.assert_allclose(h.grad, ONE_STEP, atol=1e-11)


@pytest.mark.parametrize(
    ("radius", "expected"), [(0.1, 2.79e-5), (0.01, 2.87e-7), (0.001, 2.87e-9)]
)
def test_one_step_by_differences(radius, expected, curv):
    at = (*curv[:2], jnp.full(3, 0.3))
    h = compiled(hypergrad.one_step, *at, step_size=0.1, radius=radius)
    np.testing.assert_allclose(np.linalg.norm(h.grad - ONE_STEP), expected, rtol=5e-3)


# --- identities ---------------------------------------------------------------------------


@pytest.mark.parametrize("back", [1, 5])
def test_unrolling_from_the_solution_is_a_neumann_series(back, curv):
    unrolled = compiled(hypergrad.unrolled, *curv, update=STEP, steps=back).grad
    series = compiled(hypergrad.neumann, *curv, steps=back - 1, step_size=STEP).grad
    np.testing.assert_allclose(unrolled, series, rtol=1e-12)


def test_one_step_is_unrolling_once(curv):
    at = (*curv[:2], jnp.full(3, 0.3))
    once = compiled(hypergrad.unrolled, *at, update=0.1, steps=1)
    direct = compiled(hypergrad.one_step, *at, step_size=0.1)
    np.testing.assert_allclose(direct.grad, once.grad, rtol=1e-13)
    np.testing.assert_allclose(direct.y, once.y, rtol=1e-13)


@pytest.mark.parametrize("update", [updates.SGD(0.3), updates.Momentum(0.1, 0.5)], ids=repr)
def test_unrolling_differentiates_what_it_computes(update, curv):
    problem, x, _ = curv

    def at(x):
        return compiled(hypergrad.unrolled, problem, x, jnp.zeros(3), update=update, steps=6)

    slopes = [(at(x + e).value - at(x - e).value) / 2e-5 for e in 1e-5 * np.eye(2)]
    np.testing.assert_allclose(at(x).grad, slopes, rtol=1e-7)


@pytest.mark.parametrize("back", [None, 3])
def test_checkpointing_changes_nothing(back, curv):
    at = (*curv[:2], jnp.zeros(3))
    settings = {"update": updates.Momentum(STEP, 0.3), "steps": 8, "back": back}
    plain = compiled(hypergrad.unrolled, *at, **settings)
    thrifty = compiled(hypergrad.unrolled, *at, **settings, checkpoint=True)
    np.testing.assert_allclose(thrifty.grad, plain.grad, rtol=1e-14)


class TestScalar:
    """`g = ½ (y − x)²`, `f = ½ (y − 1)²`: everything is known in closed form."""

    x, y0 = jnp.array(3.0), jnp.array(0.5)
    problem = problems.scalar().problem

    def test_the_hypergradient(self):
        found = hypergrad.implicit(self.problem, self.x, self.x).grad
        np.testing.assert_allclose(found, self.x - 1, rtol=1e-14)

    @pytest.mark.parametrize(
        ("order", "factor"), [(1, lambda p: p / (1 + p)), (2, lambda p: p**2 / (p**2 - 1))]
    )
    def test_value_difference(self, order, factor):
        for penalty in (4.0, 50.0):
            settings = {"penalty": penalty, "order": order, "solver": EXACT}
            h = compiled(hypergrad.value_difference, self.problem, self.x, self.y0, **settings)
            np.testing.assert_allclose(h.grad, (self.x - 1) * factor(penalty), rtol=1e-11)

    @pytest.mark.parametrize("steps", [1, 4])
    def test_unrolled(self, steps):
        h = hypergrad.unrolled(self.problem, self.x, self.y0, update=0.2, steps=steps)
        np.testing.assert_allclose(h.y, self.x + 0.8**steps * (self.y0 - self.x), rtol=1e-14)
        np.testing.assert_allclose(h.grad, (1 - 0.8**steps) * (h.y - 1), rtol=1e-13)

    @pytest.mark.parametrize("radius", [None, 0.01])
    def test_one_step(self, radius):
        h = hypergrad.one_step(self.problem, self.x, self.y0, step_size=0.2, radius=radius)
        np.testing.assert_allclose(h.grad, 0.2 * (h.y - 1), rtol=1e-12)

    @pytest.mark.parametrize("radius", [0.01, 100.0])
    def test_one_step_where_the_upper_loss_is_flat(self, radius):
        one = jnp.float32(1)
        h = hypergrad.one_step(self.problem, one, one, step_size=0.2, radius=radius)
        assert h.grad == 0


ESTIMATORS = {
    "implicit": functools.partial(hypergrad.implicit, linear=linear.CG(10)),
    "neumann": functools.partial(hypergrad.neumann, steps=200, step_size=0.3),
    "unrolled": functools.partial(hypergrad.unrolled, update=0.3, steps=200),
    "value_difference": functools.partial(
        hypergrad.value_difference, penalty=300.0, order=2, solver=EXACT
    ),
}
SIGNS = [problems.quad, problems.shifted, problems.minmax]


@pytest.mark.parametrize(
    ("name", "make"),
    [*((name, problems.nested) for name in ESTIMATORS), *(("implicit", p) for p in SIGNS)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_estimator_finds_the_hypergradient(name, make):
    """`nested` is a tree; `shifted` shows wrong signs; in `minmax` the implicit term vanishes."""
    case = make()
    y = jax.jit(case.y_star)(case.x0)
    h = jax.jit(ESTIMATORS[name])(case.problem, case.x0, y)
    expected = jax.jit(case.gradient)(case.x0)
    assert jax.tree.structure(h.grad) == jax.tree.structure(case.x0)
    np.testing.assert_allclose(ravel_pytree(h.grad)[0], ravel_pytree(expected)[0], rtol=1e-3)


def test_min_max_needs_no_implicit_term():
    case = problems.minmax()
    y = case.y_star(case.x0)
    partial = jax.grad(case.problem.upper)(case.x0, y, None)
    full = compiled(hypergrad.implicit, case.problem, case.x0, y).grad
    np.testing.assert_allclose(full, partial, atol=1e-10)


# --- dtypes, constraints, transformations ---------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_single_precision(name):
    case = problems.quad(jnp.float32)
    y = case.y_star(case.x0).astype(jnp.float32)
    h = jax.jit(ESTIMATORS[name])(case.problem, case.x0, y)
    assert h.grad.dtype == h.value.dtype == jnp.float32
    np.testing.assert_allclose(h.grad, [10.83868992524, -16.897800719908], rtol=2e-2)


def test_higher_orders_are_no_better_than_their_order():
    with pytest.raises(ValueError, match="orders 1, 2, 3 and 4; order=5 was asked for"):
        hypergrad.value_difference(problems.scalar().problem, 3.0, 0.0, order=5)


@pytest.mark.parametrize(("order", "y"), [(1, 3.0), (2, 3.1 / 1.1), (4, 3.1 / 1.1)])
def test_the_reported_value_is_the_nearest_to_the_solution(order, y):
    """y*(x) = 3, or the minimiser of `g + f/10`."""
    at = problems.scalar().problem, 3.0, 0.0
    h = compiled(hypergrad.value_difference, *at, penalty=10.0, order=order)
    np.testing.assert_allclose(h.value, (y - 1) ** 2 / 2, rtol=1e-6)


@pytest.mark.parametrize("x", [[0.5, -0.5], [4.0, 0.5]], ids=["inactive", "active"])
@pytest.mark.parametrize(
    "estimate",
    [
        functools.partial(hypergrad.unrolled, update=0.3, steps=80),
        functools.partial(hypergrad.value_difference, penalty=1e3, order=2, solver=EXACT),
    ],
    ids=["unrolled", "value_difference"],
)
def test_a_lower_set_is_respected(estimate, x):
    case = problems.lower_box()
    h = jax.jit(estimate)(case.problem, jnp.array(x), case.y0)
    np.testing.assert_allclose(h.grad, case.gradient(jnp.array(x)), atol=1e-5)


def test_python_numbers_will_do():
    for name, estimate in ESTIMATORS.items():
        h = estimate(problems.scalar().problem, 3.0, 3.0)
        np.testing.assert_allclose(h.grad, 2.0, rtol=1e-4, err_msg=name)


def test_a_sweep_over_penalties_is_one_vmap():
    case = problems.quad()
    penalties = jnp.array([10.0, 100.0])

    @jax.jit
    def at(penalty):
        solver = lower.Gradient(0.4, 50)
        return hypergrad.value_difference(
            case.problem, case.x0, case.y0, penalty=penalty, solver=solver
        ).grad

    np.testing.assert_allclose(jax.vmap(at)(penalties)[1], at(100.0), rtol=1e-9)


def test_hypergradients_can_be_differentiated_again():
    """The Jacobian of the exact hypergradient formula, y following x, is the Hessian of l."""
    case = problems.quad()

    def grad(x):
        return hypergrad.implicit(case.problem, x, case.y_star(x), linear=linear.CG(10)).grad

    hessian = [[3.462228551086, -4.660021359915], [-4.660021359915, 8.666460978601]]
    np.testing.assert_allclose(jax.jit(jax.jacrev(grad))(case.x0), hessian, rtol=1e-10)


# --- samples ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy():
    """QUAD as a finite sum, y*, and a handle of its lower rows, one a draw."""
    case = problems.quad_noise()
    _, rows = case.data
    draws = jax.tree.map(lambda leaf: leaf[:, None], rows)
    return case, case.y_star(case.x0), rows, Stacked(draws)


def test_the_cross_product_takes_sample_zero_and_the_series_those_after(noisy):
    case, y, rows, samples = noisy
    h = hypergrad.neumann(case.problem, case.x0, y, Batch(None, samples), steps=3, step_size=0.3)
    f_x, f_y = jax.grad(case.problem.upper, argnums=(0, 1))(case.x0, y, None)
    term = total = f_y
    for matrix in rows["H"][1:4]:
        term = term - 0.3 * matrix @ term
        total = total + term
    np.testing.assert_allclose(h.v, 0.3 * total, rtol=1e-12)
    np.testing.assert_allclose(h.grad, f_x - rows["C"][0].T @ h.v, rtol=1e-12)


def test_unrolling_takes_a_fresh_sample_each_step(noisy):
    case, y, rows, samples = noisy
    h = hypergrad.unrolled(
        case.problem, case.x0, y, Batch(None, samples), update=0.3, steps=4, back=2
    )
    moved = y
    for i in range(4):
        slope = rows["H"][i] @ moved + rows["C"][i] @ case.x0 + rows["c"][i]
        moved = moved - 0.3 * slope
    np.testing.assert_allclose(h.y, moved, rtol=1e-12)


def test_one_batch_serves_every_draw(noisy):
    case, y, rows, _ = noisy
    row = jax.tree.map(lambda leaf: leaf[:1], rows)
    h = hypergrad.neumann(case.problem, case.x0, y, Batch(None, row), steps=3, step_size=0.3)
    f_y = jax.grad(case.problem.upper, argnums=1)(case.x0, y, None)
    matrix = rows["H"][0]
    expected = linear.Neumann(3, 0.3).solve(lambda v, i: matrix @ v, f_y)
    np.testing.assert_allclose(h.v, expected, rtol=1e-12)


# --- a hypergradient in closed form ---------------------------------------------------------


def test_a_declared_hypergradient_is_used():
    case = problems.quad()
    declared = Problem(
        case.problem.upper,
        case.problem.lower,
        upper_set=sets.Free(),
        hypergradient=lambda x, y, batch: 7 * x,
    )
    h = hypergrad.closed_form_or_implicit(declared, case.x0, case.y0, Batch())
    np.testing.assert_array_equal(h.grad, 7 * case.x0)
    assert h.v is None
    same = hypergrad.closed_form_or_implicit(case.problem, case.x0, case.y0, Batch())
    np.testing.assert_array_equal(
        same.grad, hypergrad.implicit(case.problem, case.x0, case.y0).grad
    )


def test_the_penalty_formula_at_given_iterates():
    """`∇_x f(x, y) + λ (∇_x g(x, y) − ∇_x g(x, z))`, on `g = ½ (y − x)²`, where `∇_x g = x − y`."""
    h = hypergrad.value_difference_at(
        problems.scalar().problem, 3.0, 2.0, 2.5, None, None, None, penalty=10.0
    )
    np.testing.assert_allclose(h.grad, 10.0 * ((3.0 - 2.0) - (3.0 - 2.5)))
    np.testing.assert_allclose(h.value, 0.5)
