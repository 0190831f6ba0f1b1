import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import problems, sets, trees
from bilevel.problem import Problem

KINKED = {"kink1", "well_ns"}  # the hyper-objective has no gradient at the solution

cases = pytest.mark.parametrize("make", problems.ALL.values(), ids=problems.ALL)


def lower_gradient(case, x, y):
    rows = case.data and case.data[1]
    return jax.grad(case.problem.lower, argnums=1)(x, y, rows)


def points(case, count=2, size=0.5):
    """The start, and points around it."""
    yield case.x0
    for i in range(1, count):
        yield trees.axpy(size, trees.random_like(jax.random.key(i), case.x0), case.x0)


@cases
class TestEveryCase:
    def test_y_star_solves_the_lower_problem(self, make):
        case = make()

        @jax.jit
        def solve_and_step(x):
            y = case.y_star(x)
            step = trees.sub(y, lower_gradient(case, x, y))
            return y, case.problem.lower_set.project(step, x)

        for x in points(case):
            y, step = solve_and_step(x)
            assert jax.tree.structure(y) == jax.tree.structure(case.y0)
            assert trees.norm(trees.sub(step, y)) < 1e-12

    def test_gradient_equals_central_differences(self, make):
        case = make()
        value, gradient = jax.jit(case.value), jax.jit(case.gradient)
        for i, x in enumerate(points(case)):
            direction = trees.random_like(jax.random.key(9 + i), x)
            ahead, behind = (value(trees.axpy(h, direction, x)) for h in (1e-5, -1e-5))
            slope = trees.dot(gradient(x), direction)
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7, atol=1e-7)

    def test_x_star_is_stationary(self, make):
        case = make()
        if case.x_star is None:
            pytest.skip("no solution is known")
        if case.name in KINKED:
            pytest.skip("the solution is a kink")
        if not case.problem.upper_set.projectable:
            pytest.skip("x is bound through y*(x); the problem's own test looks at it")
        gradient = jax.jit(case.gradient)(case.x_star)
        step = case.problem.upper_set.project(trees.sub(case.x_star, gradient))
        assert trees.norm(trees.sub(step, case.x_star)) < 1e-12
        value = jax.jit(case.value)
        assert value(case.x_star) < value(case.x0)

    def test_curvature_constants(self, make):
        case = make()
        y, unravel = ravel_pytree(case.y_star(case.x0))
        rows = case.data and case.data[1]
        hessian = jax.jit(jax.hessian(lambda y: case.problem.lower(case.x0, unravel(y), rows)))(y)
        eigenvalues = np.linalg.eigvalsh(hessian)
        assert case.lower_mu <= eigenvalues[0] + 1e-11
        assert eigenvalues[-1] <= case.lower_L + 1e-11

    def test_dtype_and_name(self, make):
        case = make(jnp.float32)
        assert problems.ALL[case.name] is make
        found = jax.eval_shape(lambda x: (case.y_star(x), case.gradient(x)), case.x0)
        losses = case.problem.upper, case.problem.lower
        values = [jax.eval_shape(loss, case.x0, case.y0, None) for loss in losses]
        arrays = case.x0, case.y0, case.x_star, case.data, found, values
        assert {leaf.dtype for leaf in jax.tree.leaves(arrays)} == {jnp.dtype(jnp.float32)}

    def test_made_twice_compiles_once(self, make):
        traces = 0

        @jax.jit
        def loss(problem, x, y):
            nonlocal traces
            traces += 1
            return problem.upper(x, y, None) + problem.lower(x, y, None)

        for case in (make(), make()):
            loss(case.problem, case.x0, case.y0)
        assert traces == 1


def test_quad_reference_numbers():
    case = problems.quad()
    close = {"rtol": 0, "atol": 6e-13}
    np.testing.assert_allclose(case.x_star, [-0.832321222977, -0.035460414204], **close)
    np.testing.assert_allclose(case.value(case.x_star), -0.495909127851, **close)
    np.testing.assert_allclose(
        case.y_star(case.x_star), [0.471107194447, -0.419786331834, 0.017662686633], **close
    )
    x0 = case.x0
    np.testing.assert_allclose(case.value(x0), 17.583370515407, **close)
    np.testing.assert_allclose(case.gradient(x0), [10.83868992524, -16.897800719908], atol=6e-12)
    np.testing.assert_allclose(
        case.y_star(x0), [-1.334591194969, 3.138364779874, -3.85534591195], atol=6e-12
    )
    hessian = jax.jit(jax.hessian(case.value))(x0)
    expected = [[3.462228551086, -4.660021359915], [-4.660021359915, 8.666460978601]]
    np.testing.assert_allclose(hessian, expected, **close)
    np.testing.assert_allclose(
        jnp.linalg.eigvalsh(hessian), [0.727041338509, 11.401648191177], **close
    )
    lower = jax.hessian(case.problem.lower, argnums=1)(x0, case.y0, None)
    np.testing.assert_allclose(
        jnp.linalg.eigvalsh(lower), [0.408031275459, 0.881388552219, 2.210580172322], **close
    )


def test_quad_noise_averages_to_quad():
    noisy, exact = problems.quad_noise(), problems.quad()
    upper_rows, lower_rows = noisy.data
    assert {row.shape[0] for row in jax.tree.leaves(noisy.data)} == {8}
    x, y = jnp.array([0.3, -2.0]), jnp.array([1.0, 2.0, -0.5])
    for loss, mean, rows in (
        (noisy.problem.upper, exact.problem.upper, upper_rows),
        (noisy.problem.lower, exact.problem.lower, lower_rows),
    ):
        np.testing.assert_allclose(loss(x, y, rows), mean(x, y, None), atol=1e-13)
        one_by_one = [loss(x, y, jax.tree.map(lambda a, i=i: a[i : i + 1], rows)) for i in range(8)]
        np.testing.assert_allclose(np.mean(one_by_one), mean(x, y, None), atol=1e-13)
        assert np.std(one_by_one) > 0.1
    eigenvalues = np.linalg.eigvalsh(lower_rows["H"])
    assert eigenvalues.min() >= 0.2357
    assert eigenvalues.max() <= 2.3836
    # Row 3 by hand: s = −1, j = 1.
    np.testing.assert_allclose(
        lower_rows["C"][3], np.array([[0.94, 0.14], [-0.7, 1.0], [0.4, -0.9]]), atol=1e-14
    )
    np.testing.assert_allclose(lower_rows["c"][3, 2], 0.3 - 0.5 * np.cos(3.0))
    np.testing.assert_allclose(upper_rows["p"][3, 0], -1 - 0.5 * np.sin(2.0))
    np.testing.assert_allclose(upper_rows["q"][3, 1], -0.4 - 0.5 * np.cos(2.0))


def test_curv_reference_numbers():
    case = problems.curv()
    x, y = case.x0, jax.jit(case.y_star)(case.x0)
    np.testing.assert_allclose(y, [-1.108231654387, 2.340737630979, -2.612732276556], atol=6e-13)
    f_y = jax.grad(case.problem.upper, argnums=1)(x, y, None)
    np.testing.assert_allclose(f_y, [-1.885109291627, 3.992691081441, -3.544423590314], atol=6e-12)
    hessian = jax.jit(jax.hessian(case.problem.lower, argnums=1))(x, y, None)
    np.testing.assert_allclose(
        jnp.linalg.eigvalsh(hessian), [0.493715884275, 1.035220780677, 2.658707023670], atol=6e-12
    )
    v = jnp.linalg.solve(hessian, f_y)
    np.testing.assert_allclose(v, [-1.938941360661, 5.901951488486, -8.238331128664], atol=6e-12)
    gradient = jax.jit(case.gradient)(x)
    np.testing.assert_allclose(gradient, [11.766004712709, -12.876659777570], atol=6e-12)
    f_x = jax.grad(case.problem.upper)(x, y, None)
    np.testing.assert_allclose(jnp.linalg.norm(gradient - f_x), 15.259, atol=5e-4)


def test_blocks_reference_solution():
    case = problems.blocks()
    np.testing.assert_allclose(case.x_star, [-0.725213688441, 0.163037259967], atol=6e-13)


def test_boxed_reference_solution():
    case = problems.boxed()
    np.testing.assert_allclose(case.x_star, [-0.5, 0.143231211045], atol=6e-13)
    np.testing.assert_allclose(case.gradient(case.x_star), [0.31787, 0], atol=5e-6)


def test_lower_box_is_active_on_one_side():
    case = problems.lower_box()
    np.testing.assert_allclose(case.y_star(case.x_star), [1, -0.25], atol=1e-14)
    np.testing.assert_allclose(case.value(case.x_star), 0.3125)
    assert jnp.abs(case.y_star(case.x0)).max() < 1
    # Nothing on a grid is lower: the derivation looks at pieces, this at the whole.
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(-6, 8, 141), jnp.linspace(-6, 8, 141)), -1)
    values = jax.jit(jax.vmap(jax.vmap(case.value)))(grid)
    assert values.min() >= 0.3125 - 1e-12
    # A method that ignores the bound aims elsewhere.
    free = jnp.linalg.solve(jnp.array([[2.0, 1], [1, 2]]), case.x_star)
    assert jnp.abs(free - case.y_star(case.x_star)).max() > 0.5


def test_ridge_gradient_formula():
    case = problems.ridge()
    (features, target) = problems.ridge_rows().data[1]
    x = case.x0 + jnp.linspace(-1, 1, 6)
    hessian = features.T @ features / 40 + jnp.diag(jnp.exp(x))
    w = jnp.linalg.solve(hessian, features.T @ target / 40)
    f_w = jax.grad(case.problem.upper, argnums=1)(x, w, None)
    np.testing.assert_allclose(case.y_star(x), w, atol=1e-14)
    expected = -jnp.exp(x) * w * jnp.linalg.solve(hessian, f_w)
    np.testing.assert_allclose(case.gradient(x), expected, atol=1e-14)
    np.testing.assert_allclose(problems.ridge_rows().gradient(x), expected, atol=1e-14)


def test_minmax_and_shifted_gradients():
    case = problems.minmax()
    x, y = case.x0, case.y_star(case.x0)
    f_x, f_y = jax.grad(case.problem.upper, argnums=(0, 1))(x, y, None)
    np.testing.assert_allclose(f_y, np.zeros(3), atol=1e-14)
    np.testing.assert_allclose(case.gradient(x), f_x, atol=1e-13)
    case = problems.shifted()
    f_x, f_y = jax.grad(case.problem.upper, argnums=(0, 1))(case.x0, case.x0, None)
    np.testing.assert_allclose(case.gradient(case.x0), f_x + f_y, atol=1e-14)


def test_nested_is_quad_twice():
    case, one = problems.nested(), problems.quad()
    np.testing.assert_allclose(case.value(case.x0), 2 * one.value(one.x0))
    np.testing.assert_allclose(
        ravel_pytree(case.gradient(case.x0))[0], jnp.tile(one.gradient(one.x0), 2), rtol=1e-12
    )
    shapes = {leaf.ndim for leaf in jax.tree.leaves(case.y0)}
    assert shapes == {0, 1, 2}


def test_replace_keeps_all_but_what_belongs_to_the_old_loss():
    def loss(x, y, batch):
        return jnp.sum((x - y) ** 2)

    box, ball = sets.Box(0.0, 1.0), sets.Ball(1.0)
    known = {"hypergradient": lambda x, y, batch: x, "lower_step": lambda x, y, batch: y}
    problem = Problem(loss, loss, upper_set=box, lower_set=ball, blocks=3, **known)
    same = problem.replace(lower_set=None)
    assert isinstance(same.lower_set, sets.Free)
    assert (same.upper_set, same.blocks) == (problem.upper_set, 3)
    assert same.hypergradient is not None
    assert same.lower_step is not None
    upper = problem.replace(upper=lambda x, y, batch: loss(x, y, batch) / 2)
    assert upper.hypergradient is None
    assert upper.lower_step is not None
    lower = problem.replace(lower=lambda x, y, batch: loss(x, y, batch) / 2)
    assert (lower.hypergradient, lower.lower_step) == (None, None)
    assert (lower.lower_set, lower.blocks) == (problem.lower_set, 3)
    with pytest.raises(TypeError, match="wrong"):
        problem.replace(wrong=1)
