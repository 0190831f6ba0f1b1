"""A race among methods; `solve` without one for problems that theory and size do not decide."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import errors, jobs
from bilevel.problem import Structure
from bilevel.selection.race import able

N = 50


def shifted_upper(x, y, batch):
    return jnp.sum((y - 1) ** 2) / 2


def follows(x, y, batch):
    return jnp.sum((y - x) ** 2) / 2


def known(x, y, batch):
    return y - 1


def halfway(x, y, batch):
    return (x + y) / 2


KNOWN = bl.Problem(shifted_upper, follows, hypergradient=known)
START = {"x0": jnp.zeros(N), "y0": jnp.zeros(N)}
LONG = 3600  # seconds: on a busy machine, too, everything entered starts


def test_the_winner_has_the_smallest_true_loss():
    entered = [bl.methods.BSA(0.5, 0.5), bl.methods.TTSA(1e-4, 1e-4)]
    found = bl.race(KNOWN, **START, methods=entered, seconds=LONG)
    assert isinstance(found.method, bl.methods.BSA)
    assert [one.score for one in found.entrants] == sorted(one.score for one in found.entrants)
    assert found.entrants[0].steps > found.entrants[1].steps  # which was left behind
    assert "BSA" in str(found)
    assert found.entrants[0].score < 1e-3 < found.entrants[1].score


def test_steps_that_are_too_long_later_do_not_win():
    """Steps that grow with k are best long at first; past 2/L, and L is 1 here, x runs away."""
    growing = bl.methods.BSA(bl.schedules.Linear(0.1, 0.01), 0.5)

    def last_step(**given):
        found = bl.race(KNOWN, **START, methods=[growing], seconds=LONG, **given)
        return found, float(found.method.x_update.step_size(jnp.int32(399)))

    assert last_step()[1] > 2
    found, step = last_step(until=400)
    assert step < 2
    assert found.entrants[0].steps == 400
    assert found.start == pytest.approx(N / 2)  # of y* = x = 0
    assert found.entrants[0].score < 1e-12


def test_threads_race_to_the_same_winner():
    entered = [bl.methods.BSA(0.5, 0.5), bl.methods.TTSA(1e-4, 1e-4)]
    found, same = (
        bl.race(KNOWN, **START, methods=entered, executor=executor, seconds=600)
        for executor in (None, ThreadPoolExecutor(2))
    )
    assert [(one.steps, one.score) for one in found.entrants] == [
        (one.steps, one.score) for one in same.entrants
    ]
    with pytest.raises(TypeError, match=r"executor is of type int; one with submit\("):
        bl.race(KNOWN, **START, methods=entered, executor=2)  # pyright: ignore[reportArgumentType]


def loky(folder):
    return pytest.importorskip("joblib.externals.loky").get_reusable_executor(max_workers=2)


def submitit(folder):
    return pytest.importorskip("submitit").AutoExecutor(folder=folder, cluster="local")


def test_another_precision_where_the_jobs_run_is_refused(monkeypatch):
    main = threading.main_thread()
    monkeypatch.setattr(jobs, "_double", lambda: threading.current_thread() is main)
    with pytest.raises(errors.Failed, match="JAX_ENABLE_X64=1"):
        list(jobs.each(abs, [1.0], ThreadPoolExecutor(1)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [loky, submitit], ids=lambda make: make.__name__)
def test_processes_race_to_the_same_winner(make, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    here = Path(__file__).parent  # the losses go by name
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))
    entered = [bl.methods.BSA(0.5, 0.5), bl.methods.TTSA(1e-4, 1e-4)]
    found, same = (
        bl.race(KNOWN, **START, methods=entered, executor=executor, seconds=600)
        for executor in (None, make(tmp_path))
    )
    assert [one.steps for one in found.entrants] == [one.steps for one in same.entrants]
    np.testing.assert_allclose(
        *([one.score for one in race.entrants] for race in (found, same)), rtol=1e-9
    )


def test_what_does_not_handle_the_problem_is_left_out_and_said():
    entered = [bl.methods.SOBA, bl.methods.BSA(0.5, 0.5)]
    found = bl.race(KNOWN, **START, methods=entered, seconds=LONG)
    assert len(found.entrants) == 1
    assert found.left_out[0].startswith("SOBA did not start: SOBA cannot solve this problem")
    with pytest.raises(ValueError, match=r"no method got anywhere.*SOBA cannot solve"):
        bl.race(KNOWN, **START, methods=[bl.methods.SOBA])


def test_every_method_that_takes_a_declared_hypergradient_runs():
    able = [m for m in bl.methods.all_methods() if Structure.HYPERGRADIENT in m.supports]
    assert bl.methods.AmIGO in able
    for method in able:
        state = method().init(KNOWN, jnp.zeros(N), jnp.zeros(N), key=jax.random.key(0))
        shapes = jax.eval_shape(lambda state, m=method(): bl.run(KNOWN, m, state, steps=1), state)
        assert shapes[0].x.shape == (N,), method


def test_a_loss_that_is_no_number_is_told():
    vector = bl.Problem(lambda x, y, batch: y, follows)
    for call in (bl.race, partial(bl.tune, bl.methods.SOBA)):
        with pytest.raises(TypeError, match="a scalar is needed"):
            call(vector, **START)


def test_deterministic_problems_are_open_to_methods_without_samples():
    data, below = bl.Data(), bl.Problem(shifted_upper, follows, lower_set=BELOW)
    free = bl.Problem(shifted_upper, follows)
    assert able(free, data, None)[0] is bl.methods.MAID
    assert all(method.samples is False for method in able(below, data, None))
    noisy = bl.Data(upper=np.zeros((8, 1)), batch_size=2)
    assert all(method.samples for method in able(free, noisy, None))


def test_streams_are_refused():
    data = bl.Data(upper=iter([np.ones(3)]), lower=None)
    with pytest.raises(TypeError, match="race draws the same samples many times"):
        bl.race(KNOWN, **START, data=data)


# --- problems that no rule decides --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lower_step", [None, halfway])
def test_a_declared_hypergradient_and_lower_step(lower_step):
    problem = bl.Problem(shifted_upper, follows, hypergradient=known, lower_step=lower_step)
    result = bl.solve(problem, **START, steps=300, progress=False)
    np.testing.assert_allclose(result.x, 1, atol=1e-6)
    assert "in a race of bl.race among" in result.status.advice


def two_sided(x, y, batch):
    return jnp.sum((y - 1) ** 2) / 2 + 0.05 * jnp.sum(x**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lower_set",
    [bl.sets.Box(0.0, 0.8), bl.sets.Polyhedron(A=jnp.eye(N), b=0.8 * jnp.ones(N))],
    ids=["box", "polyhedron"],
)
def test_large_with_constraints_below(lower_set):
    """`y* = min(x, 0.8)`: f falls until x = 0.8 and rises after it."""
    problem = bl.Problem(two_sided, follows, lower_set=lower_set)
    result = bl.solve(problem, **START, steps=400, progress=False)
    np.testing.assert_allclose(result.x, 0.8, atol=2e-3)
    assert "Chose Barrier" in result.status.advice


@pytest.mark.slow
def test_batches_with_constraints_below():
    """`y* = max(x + mean b, 0)` with b of mean 0.5: x = 0.5 where only `(y − 1)²` counts."""
    rows = np.random.default_rng(0).normal(0.5, 0.1, (64, 4))
    problem = bl.Problem(
        shifted_upper,
        lambda x, y, batch: jnp.sum((y - x - jnp.mean(batch, axis=0)) ** 2) / 2,
        lower_set=bl.sets.Box(0.0, jnp.inf),
    )
    data = bl.Data(upper=rows, lower=rows, batch_size=16)
    result = bl.solve(
        problem, x0=jnp.zeros(4), y0=jnp.zeros(4), data=data, steps=500, progress=False
    )
    np.testing.assert_allclose(result.x, 1 - rows.mean(axis=0), atol=0.05)


@pytest.mark.slow
def test_blocks():
    """`y_b* = x + b_b`, f the mean of `(y_b − 1)²/2`: x = 1 − mean b."""
    shifts = np.random.default_rng(0).normal(0.0, 0.1, (12, 8, 3))
    problem = bl.Problem(
        lambda x, y, b: jnp.mean(jnp.sum((y - 1) ** 2, axis=1)) / 2,
        lambda x, y, b: jnp.sum((y - x[None] - jnp.mean(b, axis=1)) ** 2) / 2,
        blocks=12,
    )
    data = bl.Data(shifts, shifts, blocks=3, batch_size=4)
    result = bl.solve(
        problem, x0=jnp.zeros(3), y0=jnp.zeros((12, 3)), data=data, steps=500, progress=False
    )
    np.testing.assert_allclose(result.x, 1 - shifts.mean(axis=(0, 1)), atol=0.05)


CAPPED = bl.sets.Coupled(lambda x, y: y - 0.5)


@pytest.mark.slow
def test_a_constraint_on_the_answer():
    """`y* = x` would go to 1, and may not pass 0.5."""
    problem = bl.Problem(shifted_upper, follows, upper_set=CAPPED)
    result = bl.solve(problem, **START, progress=False)
    assert "Chose AugmentedLagrangian around MAID" in result.status.advice
    np.testing.assert_allclose(result.x, 0.5, atol=1e-5)
    assert result.status.outcome is bl.Outcome.CONVERGED


BELOW = bl.sets.Coupled(lambda x, y: y**3 - 1)


@pytest.mark.slow
def test_a_constraint_on_a_constrained_answer():
    problem = bl.Problem(shifted_upper, follows, upper_set=CAPPED, lower_set=BELOW)
    result = bl.solve(problem, **START, steps=300, progress=False)
    assert "Chose AugmentedLagrangian around Barrier" in result.status.advice
    np.testing.assert_allclose(result.x, 0.5, atol=1e-3)


def test_a_constraint_on_an_answer_among_several_is_refused_with_names():
    def wavy(x, y, batch):
        return jnp.sum(jnp.cos(3 * (y - x)))

    problem = bl.Problem(shifted_upper, wavy, upper_set=CAPPED, lower_set=BELOW)
    with pytest.raises(bl.methods.Unsupported, match=r"100 variables.*Pass one that handles it"):
        bl.solve(problem, **START)
