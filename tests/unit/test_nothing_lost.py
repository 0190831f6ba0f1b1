"""What can go wrong around a run costs a note, not the run."""

import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.certificates import certify
from bilevel.driver import prepare
from bilevel.methods import MAID, SOBA


def upper(x, y, batch):
    return jnp.sum((y - 1) ** 2)


def lower(x, y, batch):
    return 0.5 * jnp.sum((y - x) ** 2) + 0.05 * jnp.sum(y**2)


PROBLEM = bl.Problem(upper, lower)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_ends_with_a_certificate(dtype):
    z = jnp.zeros(3, dtype)
    result = bl.solve(PROBLEM, SOBA(0.1, 0.3), z, z, steps=50, progress=False)
    assert result.x.dtype == dtype
    assert float(result.certificate.lower_curvature) == pytest.approx(1.1, rel=1e-2)


def test_a_certificate_that_cannot_be_made_is_a_note(monkeypatch):
    def broken(*_):
        raise NotImplementedError("no such operation here")

    monkeypatch.setattr(prepare, "_certify", broken)
    result = bl.solve(PROBLEM, SOBA(), jnp.zeros(3), jnp.zeros(3), steps=5, tol=1e-9)
    assert result.stats.steps == 5
    assert result.certificate is None
    assert sum("no such operation here" in note for note in result.stats.notes) == 1


def test_what_violates_a_constraint_is_not_ok_without_a_certificate_either(monkeypatch):
    def broken(*_):
        raise NotImplementedError("no such operation here")

    monkeypatch.setattr(prepare, "_certify", broken)
    empty = bl.sets.Polyhedron(jnp.array([[1.0, 0, 0], [-1, 0, 0]]), jnp.array([-1.0, -1.0]))
    problem = bl.Problem(upper, lower, upper_set=empty)
    result = bl.solve(problem, SOBA(), jnp.zeros(3), jnp.zeros(3), steps=5, progress=False)
    assert result.certificate is None
    assert result.status.outcome is bl.Outcome.INFEASIBLE
    assert "violated by 1" in result.status.advice


def test_the_columns_stay_after_a_divergence():
    result = bl.solve(
        PROBLEM, SOBA(1e6, 1e6, 1e6), jnp.ones(3), jnp.ones(3), steps=200, progress=False
    )
    assert result.status.outcome is bl.Outcome.DIVERGED
    assert {"step", "upper", "hypergrad_norm", "lower_grad_norm"} <= set(result.history)


@pytest.mark.parametrize("method", [SOBA(), MAID()], ids=["SOBA", "MAID"])
def test_an_empty_set_is_not_solved(method):
    empty = bl.sets.Polyhedron(jnp.array([[1.0, 0, 0], [-1, 0, 0]]), jnp.array([-1.0, -1.0]))
    problem = bl.Problem(upper, lower, upper_set=empty)
    result = bl.solve(problem, method, jnp.zeros(3), jnp.zeros(3), steps=20, progress=False)
    assert result.status.outcome is bl.Outcome.INFEASIBLE or not result.status.ok


SETS = {
    "an upper box": ({"upper_set": bl.sets.Box(0.0, 1.0)}, 2.0),
    "a lower box": ({"lower_set": bl.sets.Box(0.0, 1.0)}, 3.0),
    "a lower ball": ({"lower_set": bl.sets.Ball(1.0)}, np.sqrt(20.0) - 1),
    "a lower simplex": ({"lower_set": bl.sets.Simplex()}, 5.0),
    "x below y": ({"upper_set": bl.sets.Coupled(lambda x, y: x - y)}, 5.0),
    "y below x": ({"lower_set": bl.sets.Coupled(lambda x, y: y - x)}, 3.0),
    "an equation": (
        {"lower_set": bl.sets.Coupled(None, equalities=lambda x, y: x[0] + y[0] - 9)}, 4.0,
    ),
    "two sets": ({"lower_set": (bl.sets.Box(-9.0, 9.0), bl.sets.Ball(1.0))}, np.sqrt(20.0) - 1),
    "none": ({}, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_every_certificate_says_how_feasible(name):
    declared, worst = SETS[name]
    x, y = jnp.array([3.0, -1.0]), jnp.array([2.0, 4.0])
    problem = bl.Problem(lambda x, y, b: upper(x, y, b), lambda x, y, b: lower(x, y, b), **declared)
    # Here x - y is at most 1, y - x at most 5, and the sum of y is 6.
    found = certify(problem, x, y)
    expected = {"x below y": 1.0, "y below x": 5.0}.get(name, worst)
    assert float(found.violation) == pytest.approx(expected, rel=1e-6)
    assert found.feasible == (expected == 0)


def test_a_loaders_buffer_may_be_used_again():
    def stream(copy):
        rng, buffer = np.random.default_rng(0), np.zeros((4, 2))
        while True:
            buffer[:] = rng.normal(size=buffer.shape)
            yield buffer.copy() if copy else buffer

    def x_of(copy):
        problem = bl.Problem(
            lambda x, y, b: jnp.sum((y - b.mean(0)) ** 2),
            lambda x, y, b: jnp.sum((y - x - b.mean(0)) ** 2),
        )
        data = bl.Data(upper=stream(copy), lower=stream(copy))
        start = jnp.zeros(2), jnp.zeros(2)
        return bl.solve(problem, SOBA(), *start, data=data, steps=20, certify=False).x

    np.testing.assert_array_equal(x_of(False), x_of(True))


def test_a_second_ctrl_c_leaves_a_loader_that_blocks():
    blocked = threading.Event()

    def stream():
        for _ in range(3):
            yield np.ones((2, 2))
        for after in (0.2, 0.6):
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        blocked.wait()

    problem = bl.Problem(
        lambda x, y, b: jnp.sum((y - b.mean(0)) ** 2), lambda x, y, b: jnp.sum((y - x) ** 2)
    )
    start = jnp.zeros(2), jnp.zeros(2)
    data = bl.Data(upper=stream())
    result = bl.solve(problem, SOBA(), *start, data=data, steps=20, log_every=1, progress=False)
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    assert result.status.outcome is bl.Outcome.INTERRUPTED
    assert all(t.daemon for t in others if t.is_alive())  # none keeps the process alive
    blocked.set()
    assert result.stats.steps == 3


def test_a_check_that_fails_after_the_run_is_a_note(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no scale")

    monkeypatch.setattr("bilevel.global_search.check_small", broken)
    result = bl.solve(PROBLEM, x0=jnp.zeros(3), y0=jnp.zeros(3), steps=20, progress=False)
    assert result.status.ok
    assert any("ZeroDivisionError: no scale" in note for note in result.stats.notes)


def test_python_numbers_are_starting_points():
    problem = bl.Problem(
        lambda x, y, b: (y["a"] - 1) ** 2 + 0.1 * x**2, lambda x, y, b: (y["a"] - x) ** 2
    )
    result = bl.solve(problem, x0=0.0, y0={"a": 0.0}, progress=False)
    np.testing.assert_allclose(result.x, 1 / 1.1, atol=1e-2)  # d/dx of (x - 1)^2 + x^2 / 10
    assert isinstance(result.y["a"], jax.Array)


def test_a_result_is_a_table_a_picture_and_a_page(tmp_path):
    result = bl.solve(PROBLEM, SOBA(0.1, 0.3), jnp.zeros(3), jnp.zeros(3), steps=50, log_every=10)
    table = result.to_pandas()
    assert list(table.index) == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(table["upper"], result.history["upper"])
    ax = result.plot("upper", "lower_grad_norm")
    assert [line.get_label() for line in ax.lines] == ["upper", "lower_grad_norm"]
    assert ax.get_xlabel() == "step"
    with pytest.raises(ValueError, match="the history has no 'loss'; it has step, "):
        result.plot("loss")
    assert result._repr_html_().startswith("<table>")
    assert "finished: all steps made" in result._repr_html_()


def test_double_precision_that_is_not_kept_is_said():
    code = (
        "import numpy as np, bilevel as bl;"
        "p = bl.Problem(lambda x, y, b: ((y - 1)**2).sum(), lambda x, y, b: ((y - x)**2).sum());"
        "bl.solve(p, bl.methods.SOBA(.1, .1), np.zeros(2), np.zeros(2), steps=1, certify=False)"
    )
    env = {**os.environ, "JAX_ENABLE_X64": "0"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "x0 or y0 is float64, and JAX computes in float32" in ended.stderr
