"""Grasps: the energies of the plane, their slope, and a plan that holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bilevel.apps import grasp

CIRCLE = grasp.ellipse()


@pytest.mark.slow
def test_energies_of_two_contacts_on_a_circle():
    """0 exactly within 2 atan(0.1) = 11.4 degrees of opposite."""
    measure = jax.jit(lambda x: grasp.energy(CIRCLE, x))
    known = {180: 0, 175: 0, 170: 0, 168: 1.3e-5, 160: 0.0028, 120: 0.085, 90: 0.2025}
    for apart, value in known.items():
        found = measure(jnp.deg2rad(jnp.array([20.0, 20.0 + apart])))
        np.testing.assert_allclose(found, value, atol=1e-8, rtol=0.02)


def test_wrenches_are_those_of_mechanics():
    """Two fingers on an ellipse: force and torque by hand."""
    outline, x = grasp.ellipse(2, 1), jnp.array([0.0, np.pi / 2])
    y = jnp.array([1.0, 3, 0.5, -0.25])  # pressures, then frictions
    # At (2, 0): normal (−1, 0), tangent (0, 1). At (0, 1): normal (0, −1), tangent (−1, 0).
    force = np.array([-1, 0.5]) + np.array([0.25, -3])
    torque = 2 * 0.5 + (0 * -3 - 1 * 0.25)
    expected = [*force, torque]
    np.testing.assert_allclose(grasp.wrenches(outline, x) @ y, expected, atol=1e-12)


@pytest.mark.slow
def test_forces_minimise_and_the_declared_slope_is_that_of_the_value():
    outline, x, mu = grasp.rounded(3, 0.1), jnp.array([0.1, 0.9, 2.8]), 0.1
    problem = grasp.problem(outline, friction=mu)
    assert problem.lower_step is not None
    assert problem.hypergradient is not None
    step, slope, value = (
        jax.jit(problem.lower_step),
        jax.jit(problem.hypergradient),
        jax.jit(lambda x: grasp.energy(outline, x, friction=mu)),
    )
    y = step(x, jnp.zeros(6), None)
    G = np.asarray(grasp.wrenches(outline, x))
    limits = [{"type": "ineq", "fun": lambda y: mu * y[:3] - np.abs(y[3:])}]
    limits += [{"type": "ineq", "fun": lambda y: y[:3].sum() - 1}]
    bounds = [(0, 1)] * 3 + [(None, None)] * 3
    start = np.array([0.4, 0.4, 0.4, 0, 0, 0])
    other = minimize(
        lambda y: np.sum((G @ y) ** 2) / 2, start, bounds=bounds, constraints=limits, tol=1e-14
    )
    np.testing.assert_allclose(value(x), other.fun, rtol=1e-4)
    step_size = 1e-5
    differences = [
        (value(x + step_size * e) - value(x - step_size * e)) / (2 * step_size) for e in jnp.eye(3)
    ]
    np.testing.assert_allclose(slope(x, y, None), differences, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_plan_from_a_quarter_turn_ends_at_opposite_contacts():
    found = grasp.plan(CIRCLE, jnp.deg2rad(jnp.array([0.0, 90.0])), progress=False)
    assert found.status.ok
    apart = np.rad2deg(found.x[1] - found.x[0])
    assert 168.6 <= apart <= 180
    assert grasp.energy(CIRCLE, found.x) < 1e-8


@pytest.mark.parametrize(
    ("x0", "settings", "told"),
    [
        (jnp.zeros(1), {}, "two or more angles"),
        (jnp.zeros((2, 2)), {}, "two or more angles"),
        (jnp.zeros(2), {"friction": 0.0}, "a friction above 0"),
        (jnp.zeros(2), {"margin": 1.0}, "a margin from 0 to below 1"),
    ],
)
def test_a_wrong_use_is_refused(x0, settings, told):
    with pytest.raises(ValueError, match=told):
        grasp.plan(CIRCLE, x0, **settings)
