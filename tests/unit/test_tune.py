"""Step sizes found by a race."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import flat

import bilevel as bl
from bilevel import methods, problems, updates
from bilevel.schedules import Cosine, Polynomial
from bilevel.selection.ahead import measured_ahead


@pytest.mark.slow(unless=lambda rows: rows == "quad_noise")
@pytest.mark.parametrize(
    ("method", "rows"), [(methods.SOBA, "quad_noise"), (methods.StocBiO, "ridge_rows")]
)
def test_a_tuned_method_solves(method, rows):
    case = problems.ALL[rows]()
    data = bl.Data(*case.data, batch_size=2)
    tuned = bl.tune(method, case.problem, case.x0, case.y0, data=data, steps=200)
    result = bl.solve(
        case.problem, tuned.method, case.x0, case.y0, data=data, steps=1000, progress=False
    )
    first, last = (np.linalg.norm(flat(case.gradient(x))) for x in (case.x0, result.x))
    assert last < 0.1 * first
    assert [lane.score for lane in tuned.trials] == sorted(lane.score for lane in tuned.trials)
    assert method.__name__ in str(tuned)


def test_the_race_goes_on_beyond_its_grid():
    case = problems.quad()
    tuned = bl.tune(
        methods.TTSA,
        case.problem,
        case.x0,
        case.y0,
        steps=20,
        x_factors=(1e-4, 1e-3),
        lower_factors=(1.0,),
    )
    assert tuned.trials[0].x_factor > 5e-3


def test_an_executor_runs_the_same_trials():
    case = problems.quad()
    found, same = (
        bl.tune(methods.TTSA, case.problem, case.x0, case.y0, steps=20, executor=executor,
                x_factors=(1.0,))
        for executor in (None, ThreadPoolExecutor(2))
    )  # fmt: skip
    np.testing.assert_allclose(found.trials, same.trials, rtol=1e-9)


def test_settings_are_kept():
    case = problems.quad()
    tuned = bl.tune(methods.StocBiO, case.problem, case.x0, case.y0, steps=5, lower_steps=3)
    assert tuned.method.lower_steps == 3


def test_what_cannot_be_tuned_is_refused():
    case = problems.quad()
    with pytest.raises(TypeError, match="finds its own"):
        bl.tune(methods.MAID, case.problem, case.x0, case.y0)
    flat_below = bl.Problem(case.problem.upper, lambda x, y, batch: (x.sum() - y.sum()) ** 4)
    with pytest.raises(ValueError, match="strongly convex"):
        bl.tune(methods.SOBA, flat_below, case.x0, case.y0)


def test_scaled_updates():
    tree, direction = jnp.ones(2), jnp.array([1.0, -2.0])
    for update in (
        updates.SGD(Polynomial(0.1, 0.5)),
        updates.Momentum(Cosine(0.1, 10)),
        updates.FromOptax(optax.adam, 0.1),
    ):
        whole, _ = update.step(direction, update.init(tree), tree, 3)
        half = updates.scaled(update, 0.5)
        moved, _ = half.step(direction, half.init(tree), tree, 3)
        np.testing.assert_allclose(moved - tree, 0.5 * (whole - tree), rtol=1e-12)


# --- curvature ahead --------------------------------------------------------------------------


def test_curvature_is_measured_where_the_first_directions_lead():
    """`y* = σ(−x)` and `f = y²/2`: the slope `−s²(1 − s)` falls to a tenth until s is ⅛."""
    problem = bl.Problem(lambda x, y, b: y**2 / 2, lambda x, y, b: (1 + jnp.exp(x)) * y**2 / 2 - y)
    x, y, key = jnp.array(0.0), jnp.array(0.5), jax.random.key(0)
    here = bl.certificates.probe(problem, x, y)
    np.testing.assert_allclose(here.hyper_L, 1 / 16, rtol=1e-6)
    ahead = measured_ahead(here, problem, x, y, bl.Batch(), key)
    s = (1 - np.sqrt(1 - 4 * np.sqrt(ahead.hyper_L))) / 2  # the curvature is (s (1 − s))²
    assert 0.0 < s**2 * (1 - s) <= 0.1 / 8
    assert ahead._replace(hyper_L=here.hyper_L, hyper_mu=here.hyper_mu) == here


def test_curvature_of_a_quadratic_is_the_same_ahead():
    case = problems.quad()
    x, y = case.x0, case.y_star(case.x0)
    here = bl.certificates.probe(case.problem, x, y)
    ahead = measured_ahead(here, case.problem, x, y, bl.Batch(), jax.random.key(0))
    np.testing.assert_allclose(ahead.hyper_L, here.hyper_L, rtol=1e-4)
