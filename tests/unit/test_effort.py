"""Little effort to compile what runs briefly: the same numbers, and a step is traced once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import effort, jaxprs


@pytest.mark.parametrize("n", [3, effort.FEW + 1])
def test_brief_programs_give_the_usual_numbers(n):
    mean = effort.briefly(lambda x, power: jnp.mean(x**power))
    x = jnp.arange(n, dtype=float)
    expected = np.mean(np.arange(n) ** 2.0)
    assert mean(x, 2) == pytest.approx(expected)
    assert jax.jit(lambda x: mean(x, 2))(x) == pytest.approx(expected)  # where no options may be


def test_many_numbers_get_all_effort():
    assert effort.options(jnp.zeros(effort.FEW), jnp.zeros(1)) is None


@pytest.mark.parametrize("n", [3, effort.FEW + 1])
def test_arrays_that_the_losses_close_over_count(n):
    data, step = jnp.ones(n), jax.jit(lambda x: jax.lax.cond(x > 0, lambda: data.sum(), lambda: x))
    found = jaxprs.closed_over(jax.make_jaxpr(step)(jnp.zeros(())).jaxpr)
    assert found == n
    assert (effort.options(jnp.zeros(()), more=found) is None) == (n > effort.FEW)


def test_a_step_is_traced_once(monkeypatch):
    traced, step = [], bl.methods.BSA.step
    monkeypatch.setattr(bl.methods.BSA, "step", lambda *args: traced.append(1) or step(*args))
    problem = bl.Problem(
        lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2, lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
    )
    start = {"x0": jnp.zeros(2), "y0": jnp.zeros(2)}
    result = bl.solve(problem, bl.methods.BSA(0.1, 0.5), **start, steps=3, progress=False)
    assert result.stats.steps == 3
    assert len(traced) == 1
