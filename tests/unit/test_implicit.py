"""Derivatives of roots and fixed points that any solver finds; `argmin` of a plain function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.lower import argmin, custom_fixed_point, custom_root

A = jnp.array([[3.0, 1.0, 0.5], [0.0, 2.0, -1.0], [0.3, 0.0, 4.0]])  # not symmetric
X = jnp.array([1.0, -2.0, 0.5])


@custom_root(lambda y, x, b: A @ y + 0.1 * y**3 - x * b)
def newton(y, x, b):
    """Twenty steps, of which derivatives know nothing."""

    def step(y, _):
        F = A @ y + 0.1 * y**3 - x * b
        return y - jnp.linalg.solve(A + 0.3 * jnp.diag(y**2), F), None

    return jax.lax.scan(step, y, length=20)[0]


def exact(x, b):
    """The Jacobian in x at the root."""
    y = newton(jnp.zeros(3), x, b)
    return jnp.linalg.solve(A + 0.3 * jnp.diag(y**2), jnp.eye(3) * b)


@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])
def test_a_root_has_its_implicit_derivatives_in_both_modes(jacobian):
    found = jacobian(lambda x: newton(jnp.ones(3), x, 2.0))(X)
    np.testing.assert_allclose(found, exact(X, 2.0), rtol=1e-12)
    slope = jax.grad(lambda b: newton(jnp.ones(3), X, b).sum())(2.0)
    step = 1e-6
    apart = [newton(jnp.ones(3), X, 2.0 + s).sum() for s in (step, -step)]
    np.testing.assert_allclose(slope, (apart[0] - apart[1]) / (2 * step), rtol=1e-7)


def test_second_derivatives_and_jit_and_vmap():
    def value(x):
        return newton(jnp.zeros(3), x, 1.0).sum()

    H, step = jax.jit(jax.hessian(value))(X), 1e-5
    slopes = jax.vmap(jax.grad(value))(X[None] + step * jnp.concatenate([jnp.eye(3), -jnp.eye(3)]))
    np.testing.assert_allclose(H, (slopes[:3] - slopes[3:]) / (2 * step), atol=1e-8)


def test_a_fixed_point_on_trees_with_a_solver_of_the_users():
    """Ridge regression by projected gradient; the active entries have no derivative."""

    def step(y, x):
        return {"w": jnp.maximum(y["w"] - 0.2 * (y["w"] - x), 0.0)}

    def solve(A, b):
        return jax.scipy.sparse.linalg.bicgstab(A, b, tol=1e-14)[0]

    @custom_fixed_point(step, solve=solve)
    def fit(y, x):
        return jax.lax.fori_loop(0, 200, lambda i, y: step(y, x), y)

    found = jax.jacrev(lambda x: fit({"w": jnp.zeros(3)}, x)["w"])(X)
    np.testing.assert_allclose(found, jnp.diag(X > 0), atol=1e-9)


def test_more_unknowns_than_a_matrix_is_made_for():
    n = 300
    scale = jnp.linspace(1.0, 2.0, n)
    fit = custom_root(lambda y, x: scale * y - x)(lambda y, x: x / scale)
    found = jax.grad(lambda x: fit(jnp.zeros(n), x).sum())(jnp.ones(n))
    np.testing.assert_allclose(found, 1 / scale, rtol=1e-8)


def test_a_condition_of_another_shape_is_refused():
    fit = custom_root(lambda y, x: (y - x).sum())(lambda y, x: x)
    with pytest.raises(ValueError, match=r"returns shapes \(\) where y has \(3,\)"):
        fit(jnp.zeros(3), X)


def test_arguments_by_name_and_what_a_solver_tells_beside_y():
    """As with jaxopt: `b` by name is differentiated, and the number of steps comes out."""

    @custom_root(lambda y, x, b: A @ y - x * b, has_aux=True)
    def told(y, x, b=1.0):
        return jnp.linalg.solve(A, x * b) + 0 * y, {"steps": 7}

    value, aux = told(jnp.zeros(3), X, b=2.0)
    assert aux == {"steps": 7}
    np.testing.assert_allclose(A @ value, 2.0 * X, rtol=1e-12)
    slope = jax.grad(lambda b: told(jnp.zeros(3), x=X, b=b)[0].sum())(2.0)
    np.testing.assert_allclose(slope, jnp.linalg.solve(A, X).sum(), rtol=1e-12)
    assert told.__name__ == "told"


def test_a_solver_that_returns_more_than_y_is_refused_in_words():
    fit = custom_fixed_point(lambda y, x: {"w": x * y["w"]})(lambda y, x: (y, 7))
    with pytest.raises(ValueError, match=r"returns y alone, or \(y, aux\) with has_aux=True"):
        fit({"w": jnp.zeros(3)}, X)


def test_argmin_takes_a_plain_function():
    def g(x, y):
        return jnp.sum((y - x**2) ** 2)

    y = argmin(g, X, jnp.zeros(3))
    np.testing.assert_allclose(y, X**2, rtol=1e-8)
    slope = jax.jacrev(lambda x: argmin(g, x, jnp.zeros(3)))(X)
    np.testing.assert_allclose(slope, jnp.diag(2 * X), atol=1e-8)
    weighed = argmin(lambda x, y, batch: jnp.sum((y - batch) ** 2), X, jnp.zeros(3), jnp.ones(3))
    np.testing.assert_allclose(weighed, 1, rtol=1e-8)
    with pytest.raises(TypeError, match=r"int is neither a Problem nor a function g\(x, y\)"):
        argmin(3, X, jnp.zeros(3))


def test_the_namespace_holds_what_is_documented_and_nothing_else():
    for name in dir(bl):
        assert getattr(bl, name) is not None
    assert {"problems", "apps", "report", "race", "solve"} <= set(dir(bl))
    assert not {"importlib", "Any", "TYPE_CHECKING"} & set(dir(bl))


def test_a_misspelt_method_is_named_right():
    with pytest.raises(AttributeError, match=r"no attribute 'Soba'\. Did you mean 'SOBA'"):
        bl.methods.Soba  # noqa: B018
