"""A run that rounding ends has converged only where x was measured to be stationary."""

import jax.numpy as jnp
import pytest

import bilevel as bl


class Exhausted(bl.methods.SOBA):
    """SOBA, which says at once that no step is left."""

    def step(self, problem, state, batch):
        state, info = super().step(problem, state, batch)
        return state, info | {"exhausted": jnp.ones(())}


@pytest.mark.parametrize("certify", [True, False])
@pytest.mark.parametrize(("start", "stationary"), [(0.0, True), (3.0, False)])
def test_a_run_that_rounding_ends(start, stationary, certify):
    problem = bl.Problem(lambda x, y, b: y**2 / 2, lambda x, y, b: (y - x) ** 2 / 2)
    at = jnp.asarray(start)
    result = bl.solve(
        problem, Exhausted(1e-6, 1e-6, 1e-6), at, at, steps=10, certify=certify, progress=False
    )
    assert result.status.ok is (stationary and certify)
    assert (result.status.outcome is bl.Outcome.STALLED) is not result.status.ok


@pytest.mark.slow
def test_a_constraint_on_the_answer_that_was_met_is_called_converged():
    """AugmentedLagrangian(MAID) ended "stalled" there: no certificate measured its x."""
    n = 30
    problem = bl.Problem(
        lambda x, y, _: jnp.mean(x**2),
        lambda x, y, _: jnp.sum((y - 2 * x) ** 2) / 2,
        upper_set=bl.sets.Coupled(lambda x, y: 1 - jnp.mean(y)),
    )
    method = bl.methods.AugmentedLagrangian(bl.methods.MAID(), period=10, growth=2.0)
    result = bl.solve(problem, method, jnp.ones(n), jnp.zeros(n), progress=False)
    assert result.status.outcome is bl.Outcome.CONVERGED
    assert result.certificate.stationarity < 1e-6
    assert jnp.allclose(result.x, 0.5, atol=1e-6)
