"""Nothing lost: a killed run goes on, and ends bit-equal to one that was never interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import FEW, METHODS, made, same_bits, sampled

import bilevel as bl
from bilevel import problems
from bilevel.driver.checkpoint import CheckpointMismatch

CASE = problems.quad_noise()
DATA = bl.Data(*CASE.data, batch_size=3)


def solve(method, folder=None, case=CASE, data=DATA, **settings):
    checkpoint = None if folder is None else bl.Checkpoint(folder, seconds=0)
    settings = {"steps": 40, "log_every": 10, "progress": False, "certify": False, **settings}
    return bl.solve(
        case.problem, method, case.x0, case.y0, data=data, checkpoint=checkpoint, **settings
    )


class Stop(Exception):
    pass


@pytest.mark.slow(unless=lambda name: name in FEW)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_bit_equal(name, tmp_path):
    method, data = sampled(name, CASE, 3)

    def crash(step, state, row):
        if step == 20:
            raise Stop

    with pytest.raises(Stop):
        solve(method, tmp_path, data=data, callbacks=[crash])
    resumed, whole = solve(method, tmp_path, data=data), solve(method, data=data)
    assert same_bits(resumed.state, whole.state)
    assert list(resumed.history["step"]) == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(resumed.history["upper"][1:], whole.history["upper"][1:])


def test_the_best_iterate_survives(tmp_path):
    """The metric is best at step 10, which another process reached."""
    metrics = {"far": lambda x, y: (x[0] - 1.0) ** 2}
    method = made("SOBA", CASE, speed=0.1)
    solve(method, tmp_path, steps=20, metrics=metrics, keep="far")
    resumed = solve(method, tmp_path, metrics=metrics, keep="far")
    assert same_bits(resumed.x, CASE.x0)


def test_a_finished_run_is_not_run_again(tmp_path):
    method = made("SOBA", CASE, speed=0.1)
    first = solve(method, tmp_path)
    again = solve(method, tmp_path)
    assert same_bits(first.state, again.state)
    more = solve(method, tmp_path, steps=60)
    assert int(more.state.k) == 60
    assert same_bits(more.state, solve(method, steps=60).state)


HERE = Path(__file__).parent
PROGRAM = """
import sys
sys.path[:0] = {folders!r}
import conftest
from test_checkpoint import made, CASE, solve
import time
slow = lambda step, state, row: time.sleep(0.02)
result = solve(made("TTSA", CASE, speed=0.1), {folder!r}, steps=400, log_every=4, callbacks=[slow])
"""


def test_kill_9_in_the_middle_of_a_solve(tmp_path):
    folder = tmp_path / "run"
    program = PROGRAM.format(folders=[str(HERE), str(HERE.parent)], folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 120
    while newest(folder) < 12:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = newest(folder)
    assert 12 <= reached < 400
    method = made("TTSA", CASE, speed=0.1)
    resumed = solve(method, folder, steps=400, log_every=4)
    (note,) = resumed.stats.notes
    assert note.startswith("resumed from step")
    assert same_bits(resumed.state, solve(method, steps=400, log_every=4).state)


def newest(folder: Path) -> int:
    names = [path.name for path in folder.glob("*")] if folder.exists() else []
    return max([int(name) for name in names if name.isdigit()], default=0)


def test_another_method_problem_or_data_is_refused(tmp_path):
    method = made("SOBA", CASE, speed=0.1)
    solve(method, tmp_path)
    with pytest.raises(CheckpointMismatch, match="another method: saved SOBA, now F2SA"):
        solve(made("F2SA", CASE), tmp_path)
    other = problems.ridge_rows()
    with pytest.raises(CheckpointMismatch, match="another state"):
        solve(made("SOBA", other), tmp_path, case=other, data=bl.Data(*other.data, batch_size=3))
    upper, lower = CASE.data
    changed = bl.Data(upper, jax.tree.map(lambda leaf: leaf + 1, lower), batch_size=3)
    with pytest.raises(CheckpointMismatch, match="another data"):
        solve(method, tmp_path, data=changed)


def with_set(upper_set):
    return bl.Problem(CASE.problem.upper, CASE.problem.lower, upper_set=upper_set)


def squared(x, y, batch):
    return CASE.problem.upper(x, y, batch) ** 2


OTHER_CODE = {
    "loss": lambda: (bl.Problem(squared, CASE.problem.lower), optax.adam(0.01)),
    "set": lambda: (with_set(bl.sets.Ball(2.0)), optax.adam(0.01)),
    "update": lambda: (with_set(bl.sets.Simplex(2.0)), optax.nadam(0.01)),
}


@pytest.mark.parametrize("name", OTHER_CODE)
def test_other_code_is_refused(name, tmp_path):
    settings = {"data": DATA, "steps": 2, "checkpoint": tmp_path, "progress": False}
    method = bl.methods.SOBA(optax.adam(0.01))
    bl.solve(with_set(bl.sets.Simplex(2.0)), method, CASE.x0, CASE.y0, certify=False, **settings)
    problem, update = OTHER_CODE[name]()
    with pytest.raises(CheckpointMismatch, match=r"another (code|problem)"):
        bl.solve(problem, bl.methods.SOBA(update), CASE.x0, CASE.y0, **settings)


def test_another_key_is_refused(tmp_path):
    method = made("TTSA", CASE, speed=0.1)
    solve(method, tmp_path, key=jax.random.key(1))
    with pytest.raises(CheckpointMismatch, match=r"another (data|key)"):
        solve(method, tmp_path, key=jax.random.key(2))


def test_a_converged_run_stays_where_it_is(tmp_path):
    case = problems.quad()
    settings = {"case": case, "data": None, "tol": 1e-2, "steps": 10_000, "log_every": 100}
    first = solve(made("SOBA", case), tmp_path, **settings)
    assert first.status.outcome is bl.Outcome.CONVERGED
    again = solve(made("SOBA", case), tmp_path, **settings)
    assert again.status.outcome is bl.Outcome.CONVERGED
    assert same_bits(first.state, again.state)


def test_a_loader_that_fails_leaves_a_checkpoint(tmp_path):
    rows = jax.tree.map(np.asarray, CASE.data[1])

    def fails_after(n):
        for i in range(n):
            yield jax.tree.map(lambda leaf, i=i: leaf[[i % 8]], rows)
        raise OSError("the disk with the data is gone")

    data = bl.Data(CASE.data[0], fails_after(25))
    checkpoint = bl.Checkpoint(tmp_path, seconds=1000)
    result = bl.solve(
        CASE.problem,
        made("SOBA", CASE, speed=0.1),
        CASE.x0,
        CASE.y0,
        data=data,
        steps=100,
        log_every=10,
        checkpoint=checkpoint,
        progress=False,
    )
    assert result.status.outcome is bl.Outcome.OUT_OF_DATA
    assert "gone" in str(result.status)
    assert newest(tmp_path) >= 10


SIMPLE = bl.Problem(lambda x, y, b: (y - 1) ** 2, lambda x, y, b: (y - x) ** 2)


def simple(folder, x0=0.0, y0=0.0, key=0, step_size=1e-2, problem=SIMPLE, steps=20, **settings):
    return bl.solve(
        problem,
        bl.methods.SOBA(step_size),
        x0,
        y0,
        key=jax.random.key(key),
        steps=steps,
        checkpoint=bl.Checkpoint(folder, **settings),
        progress=False,
    )


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"x0": 5.0}, "another start"),
        ({"y0": 5.0}, "another start"),
        ({"key": 1}, "another key"),
        ({"problem": SIMPLE.replace(upper=lambda x, y, b: (y - 2) ** 2)}, "code of the upper"),
        ({"problem": SIMPLE.replace(lower=lambda x, y, b: 2 * (y - x) ** 2)}, "code of the lower"),
        (
            {"problem": SIMPLE.replace(upper_set=bl.sets.Box(0.0, 1.0))},
            "another (state|problem|code of a step)",
        ),
    ],
)
def test_what_differs_is_named(tmp_path, other, told):
    simple(tmp_path)
    with pytest.raises(CheckpointMismatch, match=told):
        simple(tmp_path, **other)


def test_a_new_step_size_is_taken_and_named(tmp_path):
    simple(tmp_path)
    result = simple(tmp_path, steps=30, step_size=2e-2)
    assert result.stats.steps == 10
    (note,) = [note for note in result.stats.notes if "settings changed" in note]
    assert "x_update.step_size.value from 0.01 to 0.02" in note


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a]b", "with space"])
def test_a_folder_gives_back_what_it_took_or_is_refused(tmp_path, name):
    try:
        whole = simple(tmp_path / name, steps=30)
    except ValueError:
        with pytest.raises(ValueError, match="does not give back"):
            simple(tmp_path / name, steps=30)
        return
    again = simple(tmp_path / name, steps=30)
    assert again.stats.steps == 0
    np.testing.assert_array_equal(again.x, whole.x)


def test_a_damaged_step_is_written_again(tmp_path):
    simple(tmp_path, steps=10)
    whole = simple(tmp_path, steps=20)
    for file in (tmp_path / "20").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert simple(tmp_path, steps=20).x == whole.x
    notes = simple(tmp_path, steps=20).stats.notes
    assert not any("could not" in note for note in notes)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        solve(made("SOBA", CASE, speed=0.1), tmp_path)


def test_another_step_size_may_take_a_state_up(tmp_path):
    solve(made("SOBA", CASE, speed=0.1), tmp_path, steps=20)
    assert int(solve(made("SOBA", CASE, speed=0.05), tmp_path, steps=40).state.k) == 40


def test_a_disk_that_fills_up_is_a_note_and_the_run_goes_on(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    result = solve(made("SOBA", CASE, speed=0.1), tmp_path)
    assert result.status.ok
    assert int(result.state.k) == 40
    assert sum("No space left" in note for note in result.stats.notes) == 1


def test_an_unreadable_checkpoint_gives_way_to_the_one_before(tmp_path):
    method = made("SOBA", CASE, speed=0.1)
    solve(method, tmp_path, steps=20)
    for path in (tmp_path / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    result = solve(method, tmp_path, steps=40)
    assert same_bits(result.state, solve(method, steps=40).state)
    assert any("could not be read" in note for note in result.stats.notes)


def test_sampler_streams_and_keys_survive(tmp_path):
    case = problems.quad()

    def lower(x, y, noise):
        return case.problem.lower(x, y, None) + 0.1 * noise @ y

    problem = bl.Problem(case.problem.upper, lower)
    data = bl.Data(lower=lambda key: jax.random.normal(key, (3,)))
    method = bl.methods.TTSA(0.01, 0.2, bl.linear.RandomizedNeumann(5, 0.4))
    settings = {"data": data, "log_every": 5, "progress": False, "certify": False}
    start = (problem, method, case.x0, case.y0)
    bl.solve(*start, steps=10, checkpoint=tmp_path, **settings)
    resumed = bl.solve(*start, steps=25, checkpoint=tmp_path, **settings)
    assert same_bits(resumed.state, bl.solve(*start, steps=25, **settings).state)


def test_a_stream_skips_what_was_consumed(tmp_path):
    rows = jax.tree.map(np.asarray, CASE.data[1])
    loader = [jax.tree.map(lambda leaf, i=i: leaf[[i]], rows) for i in range(8)]

    class Loader:
        def __iter__(self):
            return iter(loader)

    method = made("StocBiO", CASE, speed=0.1)
    data = lambda: bl.Data(CASE.data[0], Loader())  # noqa: E731
    solve(method, tmp_path, data=data(), steps=20)
    resumed = solve(method, tmp_path, data=data(), steps=40)
    assert same_bits(resumed.state, solve(method, data=data(), steps=40).state)
    assert jnp.isfinite(resumed.x).all()
