"""Every oracle against dense derivatives of a small nonlinear problem on nested trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import Problem, hypergrad, linear, lower, oracles, problems
from bilevel.problem import RepeatedBatch, Stacked

X = {"a": jnp.array(0.3), "b": (jnp.array([0.5, -1.0]),)}
Y = [jnp.array([[0.2, -0.4]]), {"c": jnp.array(1.1)}]
V = [jnp.array([[1.0, 2.0]]), {"c": jnp.array(-0.5)}]
U = {"a": jnp.array(-2.0), "b": (jnp.array([0.1, 1.0]),)}
BATCH = jnp.array(0.7)

flat = lambda tree: ravel_pytree(tree)[0]  # noqa: E731
x_of, y_of = ravel_pytree(X)[1], ravel_pytree(Y)[1]


def mix(x, y, batch, weight):
    p, q = flat(x), flat(y)
    return jnp.sum(jnp.sin(p + weight * q) ** 2) + jnp.prod(p) * jnp.sum(q**3) * batch + q @ q


def upper(x, y, batch):
    return mix(x, y, batch, 0.7)


def lower_loss(x, y, batch):
    return mix(x, y, batch, 2.0) + jnp.exp(jnp.sum(flat(y)) / 4)


PROBLEM = Problem(upper, lower_loss)
AT = (PROBLEM, X, Y)


def dense(loss, argnums):
    """A derivative as an array over the ravelled variables."""

    def on_vectors(p, q):
        return loss(x_of(p), y_of(q), BATCH)

    derivative = on_vectors
    for i in argnums:
        derivative = jax.jacobian(derivative, i)
    return derivative(flat(X), flat(Y))


@pytest.fixture(scope="module")
def g():
    """The derivatives of the lower loss: g_x, g_y, and the blocks yy and xy of its Hessian."""
    x, y, yy, xy = [dense(lower_loss, axes) for axes in ((0,), (1,), (1, 1), (0, 1))]
    return {"x": x, "y": y, "yy": yy, "xy": xy}


def close(tree, expected, like):
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    np.testing.assert_allclose(flat(tree), expected, rtol=1e-12)


def test_values():
    assert oracles.upper_value(*AT, BATCH) == upper(X, Y, BATCH)
    assert oracles.lower_value(*AT, BATCH) == lower_loss(X, Y, BATCH)


def test_upper_gradients():
    f_x, f_y = dense(upper, (0,)), dense(upper, (1,))
    value, by_x, by_y = oracles.upper_grads(*AT, BATCH)
    assert value == upper(X, Y, BATCH)
    close(by_x, f_x, X)
    close(by_y, f_y, Y)
    close(oracles.upper_grad_y(*AT, BATCH), f_y, Y)
    value, by_x = oracles.upper_grad_x(*AT, BATCH)
    assert value == upper(X, Y, BATCH)
    close(by_x, f_x, X)


def test_lower_gradients(g):
    close(oracles.lower_grad(*AT, BATCH), g["y"], Y)
    close(oracles.lower_grad_x(*AT, BATCH), g["x"], X)


def test_second_order_products(g):
    close(oracles.hvp(*AT, V, BATCH), g["yy"] @ flat(V), Y)
    close(oracles.cross(*AT, V, BATCH), g["xy"] @ flat(V), X)
    close(oracles.cross_transposed(*AT, U, BATCH), flat(U) @ g["xy"], Y)


def test_the_fused_products(g):
    g_y, hvp, cross = oracles.lower_products(*AT, V, BATCH)
    close(g_y, g["y"], Y)
    close(hvp, g["yy"] @ flat(V), Y)
    close(cross, g["xy"] @ flat(V), X)


def test_dense_blocks(g):
    np.testing.assert_allclose(oracles.dense_hessian(*AT, BATCH), g["yy"], rtol=1e-12)
    np.testing.assert_allclose(oracles.dense_cross(*AT, BATCH), g["xy"], rtol=1e-12)


def test_the_hessian_operator_on_one_batch(g):
    operator = oracles.hessian(*AT, RepeatedBatch(BATCH))
    close(operator(V), g["yy"] @ flat(V), Y)
    close(operator(V, 5), g["yy"] @ flat(V), Y)


def test_the_hessian_operator_reads_its_samples(g):
    operator = oracles.hessian(*AT, Stacked(jnp.stack([BATCH + 1, BATCH])))
    close(operator(V, 1), g["yy"] @ flat(V), Y)
    assert flat(operator(V, 0))[0] != flat(operator(V, 1))[0]


# --- counting -----------------------------------------------------------------------------


def counts(fn, *args, **settings):
    with jax.disable_jit(), oracles.counting() as counter:
        fn(*args, **settings)
    return dict(counter)


QUAD = problems.quad()
START = (QUAD.problem, QUAD.x0, QUAD.y0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upper_value", {"upper_value": 1}),
        ("upper_grads", {"upper_grad": 1}),
        ("lower_grad", {"lower_grad": 1}),
        ("lower_grad_x", {"lower_grad_x": 1}),
        ("upper_grad_y", {"upper_grad_y": 1}),
    ],
)
def test_each_call_is_counted(name, expected):
    assert counts(getattr(oracles, name), *START, None) == expected


def test_the_fused_products_count_as_three():
    expected = {"lower_grad": 1, "hvp": 1, "cross": 1}
    assert counts(oracles.lower_products, *START, QUAD.y0, None) == expected


def test_loops_are_counted_step_by_step():
    """Inside a scan, a series and a difference: counts are exact without jit."""
    found = counts(hypergrad.implicit, *START, linear=linear.Neumann(7, 0.1))
    assert found == {"upper_grad": 1, "hvp": 7, "cross": 1}
    descent = counts(lower.Gradient(0.1, 5).solve, *START)
    assert descent == {"lower_grad": 5 + 1}  # one for the residual
    darts = counts(hypergrad.one_step, *START, radius=0.01)
    assert darts == {"lower_grad": 1, "upper_grad": 1, "lower_grad_x": 2}


def test_first_order_estimators_take_no_second_derivatives():
    found = counts(hypergrad.value_difference, *START, solver=lower.Gradient(0.1, 3))
    assert not {"hvp", "cross", "cross_transposed", "dense_hessian"} & found.keys()


def test_blocks_may_nest_and_calls_may_be_left_out():
    with oracles.counting() as outer:
        oracles.lower_grad(*START, None)
        with oracles.counting() as inner:
            oracles.lower_grad(*START, None)
            with oracles.uncounted():
                oracles.lower_grad(*START, None)
    assert (outer["lower_grad"], inner["lower_grad"]) == (2, 1)


def test_the_price_in_gradients():
    price = oracles.Price(upper_grad=1, lower_grad=2, hvp=3, cross=1)
    assert price.gradients() == 1 + 2 + 2 * (3 + 1)
