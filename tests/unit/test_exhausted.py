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
