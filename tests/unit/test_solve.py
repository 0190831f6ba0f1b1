"""The front door: history, metrics, stopping, sources of data, what it refuses."""

import collections
import copy
import functools
import itertools
import os
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from cases import distance, made, same_bits
from jax.tree_util import Partial

import bilevel as bl
from bilevel import problems
from bilevel.driver import chunks
from bilevel.driver.log import as_metric
from bilevel.methods import SOBA
from bilevel.methods.tracked.tracked import TrackedState

CASE = problems.quad()
NOISY = problems.quad_noise()


def solve(problem=CASE.problem, method=None, x0=CASE.x0, y0=CASE.y0, **settings):
    method = SOBA(0.01, 0.4, 0.4) if method is None else method
    return bl.solve(problem, method, x0, y0, **{"steps": 10, "progress": False, **settings})


def test_what_a_metric_binds_is_an_argument_of_the_compiled_program():
    """A model in a metric would be a constant in it otherwise, and cannot be on several hosts."""
    weights = jnp.ones(3)
    bound = as_metric(Partial(lambda w, x, y: w @ w, weights))
    assert jax.tree.leaves(bound)[0] is weights
    counted = Partial(lambda n, x, y: float(sum(range(n))), 4)  # a number that decides a loop
    result = solve(steps=1, metrics={"weights": bound, "count": counted})
    assert result.history["weights"][-1] == 3
    assert result.history["count"][-1] == 6


def test_steps_means_updates_and_history_is_ready_for_pandas():
    result = solve(steps=25, log_every=10, metrics={"size": lambda x, y: x @ x})
    assert int(result.state.k) == 25
    frame = pandas.DataFrame(result.history)
    assert list(frame["step"]) == [0, 10, 20, 25]
    assert {"seconds", "gradients", "upper", "lower_grad_norm", "size"} <= set(frame)
    assert frame["size"].iloc[0] == pytest.approx(2.0)
    assert frame["size"].iloc[-1] == pytest.approx(float(result.x @ result.x))
    assert result.stats.price.hvp == 25
    assert frame["gradients"].iloc[-1] == 25 * SOBA().price(CASE.problem).gradients()


def test_solve_and_run_agree():
    result = solve(steps=30, log_every=7)
    method = SOBA(0.01, 0.4, 0.4)
    state, _ = bl.run(CASE.problem, method, method.init(CASE.problem, CASE.x0, CASE.y0), steps=30)
    np.testing.assert_allclose(result.x, state.x, rtol=1e-12)


def test_log_every_does_not_change_the_result():
    data = bl.Data(*NOISY.data, batch_size=2)
    results = [solve(data=data, steps=20, log_every=n) for n in (1, 7, 20)]
    assert all(same_bits(results[0].state, other.state) for other in results[1:])


def test_certificate_of_a_solution():
    result = solve(steps=3000)
    assert result.certificate.stationarity < 1e-6
    assert result.certificate.lower_residual < 1e-6
    assert result.certificate.adjoint_residual < 1e-6
    assert "certificate" in str(result)


def test_tol_stops_early():
    result = solve(steps=100_000, tol=1e-4, log_every=200)
    assert result.status.outcome is bl.Outcome.CONVERGED
    assert result.stats.steps < 5000
    assert distance(result.x, CASE.x_star) < 1e-3


def test_callback_sees_rows_and_may_stop():
    seen = []

    def callback(step, state, row):
        seen.append((step, float(state.x[0]), row["upper"]))
        return step >= 20

    result = solve(steps=100, log_every=10, callbacks=[callback])
    assert [step for step, *_ in seen] == [10, 20]
    assert result.status.outcome is bl.Outcome.STOPPED
    assert result.status.ok


def test_keep_best_by_a_metric():
    method = SOBA(0.06, 0.4, 0.4)  # too large a ratio: it oscillates with growing size
    metrics = {"miss": lambda x, y: jnp.sum((x - CASE.x_star) ** 2)}
    best = solve(method=method, steps=60, log_every=1, metrics=metrics, keep="miss")
    assert best.history["miss"].min() < best.history["miss"][-1]
    assert float(metrics["miss"](best.x, best.y)) == pytest.approx(best.history["miss"].min())
    worst = solve(
        method=method, steps=60, log_every=1, metrics=metrics, keep=bl.Best("miss", largest=True)
    )
    assert float(metrics["miss"](worst.x, worst.y)) == pytest.approx(best.history["miss"].max())


def test_the_certificate_is_of_the_iterate_that_is_kept():
    metrics = {"miss": lambda x, y: jnp.sum((x - CASE.x_star) ** 2)}
    result = solve(steps=500, metrics=metrics, keep=bl.Best("miss", largest=True))
    at_x0 = float(jnp.linalg.norm(CASE.gradient(CASE.x0)))
    assert result.certificate.stationarity == pytest.approx(at_x0, rel=1e-6)
    assert any("kept the iterate with miss" in note for note in result.stats.notes)


def test_a_loss_that_is_not_finite_is_said_to_be():
    problem = bl.Problem(lambda x, y, b: f(x, y, b) + jnp.log(-1 - x[0] ** 2), g)
    result = solve(problem, steps=5)
    assert result.status.outcome is bl.Outcome.DIVERGED
    assert "the upper loss is nan" in result.status.advice
    assert not np.isfinite(result.certificate.stationarity)


def test_both_levels_may_stream():
    def rows(half, n):
        whole = jax.tree.map(np.asarray, half)
        for i in range(n):
            yield jax.tree.map(lambda leaf, i=i: leaf[[i % 8]], whole)

    upper, lower = NOISY.data
    result = solve(
        NOISY.problem, data=bl.Data(rows(upper, 30), rows(lower, 12)), steps=20, log_every=6
    )
    assert result.status.outcome is bl.Outcome.OUT_OF_DATA
    assert result.stats.steps == 12


def test_throw_carries_the_result():
    with pytest.raises(bl.SolveError, match="diverged") as caught:
        solve(method=SOBA(10.0, 10.0, 10.0), steps=2000, throw=True)
    assert caught.value.result.status.outcome is bl.Outcome.DIVERGED


def test_continue_from_a_state():
    whole, half = solve(steps=20), solve(steps=8)
    rest = bl.solve(CASE.problem, SOBA(0.01, 0.4, 0.4), state=half.state, steps=12, progress=False)
    assert same_bits(whole.state, rest.state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(half.state))


def test_same_key_same_result_and_other_key_another():
    data = bl.Data(*NOISY.data, batch_size=1)
    one, again = (solve(data=data, key=jax.random.key(5)) for _ in range(2))
    other = solve(data=data, key=jax.random.key(6))
    assert same_bits(one.state, again.state)
    assert not same_bits(one.state, other.state)


def test_a_second_solve_with_another_step_size_compiles_nothing():
    traces = collections.Counter()

    def lower(x, y, batch):
        traces["lower"] += 1
        return CASE.problem.lower(x, y, batch)

    problem = bl.Problem(CASE.problem.upper, lower)
    solve(problem, certify=False)
    before, compiled = traces["lower"], compilations()
    with compiled as events:
        solve(problem, method=SOBA(0.02, 0.3, 0.2), certify=False)
    assert events == []
    # Checking the losses evaluates them abstractly; the step itself is not traced again.
    assert traces["lower"] - before <= 2


class compilations:
    """The XLA compilations inside a `with` block."""

    def __enter__(self):
        self.events = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self.events

    def __exit__(self, *_):
        self._listen = lambda *args, **kwargs: None

    def _listen(self, name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            self.events.append(name)


# --- streams -------------------------------------------------------------------------------


def numbered(start=0):
    rows = jax.tree.map(np.asarray, NOISY.data[1])
    for i in itertools.count(start):
        yield jax.tree.map(lambda leaf, i=i: leaf[[i % 8]], rows)


@pytest.mark.parametrize("name", ["SOBA", "StocBiO"])
def test_a_stream_gives_what_the_same_arrays_would(name):
    method = made(name, NOISY, speed=0.1)
    n = method.draws(NOISY.problem).lower
    upper = NOISY.data[0]
    result = solve(NOISY.problem, method, data=bl.Data(upper, numbered()), steps=9, log_every=4)
    state = method.init(NOISY.problem, NOISY.x0, NOISY.y0)
    batches = numbered()
    for _ in range(9):
        drawn = [next(batches) for _ in range(n)]
        lower = drawn[0] if n == 1 else jax.tree.map(lambda *rows: jnp.stack(rows), *drawn)
        state, _ = method.step(NOISY.problem, state, bl.Batch(upper, lower))
    np.testing.assert_allclose(result.x, state.x, rtol=1e-10)


def test_a_loader_is_started_again_and_a_generator_is_not():
    rows = list(itertools.islice(numbered(), 8))
    loader = solve(NOISY.problem, data=bl.Data(NOISY.data[0], Loader(rows)), steps=20)
    assert loader.status.outcome is bl.Outcome.FINISHED
    generator = solve(NOISY.problem, data=bl.Data(NOISY.data[0], iter(rows)), steps=20)
    assert generator.status.outcome is bl.Outcome.OUT_OF_DATA
    assert generator.stats.steps == 8


class Loader:
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_sampler_inside_the_loop():
    data = bl.Data(lower=lambda key: jax.random.normal(key, (3,)))

    def lower(x, y, noise):
        return CASE.problem.lower(x, y, None) + 0.1 * noise @ y

    result = solve(bl.Problem(CASE.problem.upper, lower), data=data, steps=50)
    assert result.status.ok
    assert any("one batch" in note for note in result.stats.notes)


def test_an_iterable_without_batches_is_refused():
    with pytest.raises(ValueError, match=r"Data\.lower is empty"):
        solve(NOISY.problem, data=bl.Data(NOISY.data[0], Loader([])), steps=3)


def batches_of(*sizes):
    rows = jax.tree.map(np.asarray, NOISY.data[1])
    return [jax.tree.map(lambda leaf, n=n: leaf[:n], rows) for n in sizes]


def test_a_smaller_last_batch_is_left_out():
    ragged = solve(NOISY.problem, data=bl.Data(NOISY.data[0], Loader(batches_of(3, 3, 2))), steps=5)
    even = solve(NOISY.problem, data=bl.Data(NOISY.data[0], Loader(batches_of(3, 3))), steps=5)
    np.testing.assert_array_equal(ragged.x, even.x)
    assert any("smaller batches of Data.lower" in note for note in ragged.stats.notes)


def test_batches_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"different shapes.*smaller batch"):
        solve(NOISY.problem, data=bl.Data(NOISY.data[0], Loader(batches_of(3, 4))), steps=5)


def test_a_loader_that_fails_loses_no_step():
    def failing():
        yield from batches_of(*[3] * 8)
        raise OSError("the disk went away")

    data = bl.Data(NOISY.data[0], failing())
    result = solve(NOISY.problem, data=data, steps=20, log_every=4)
    assert result.stats.steps == 8
    assert result.status.outcome is bl.Outcome.OUT_OF_DATA
    assert "the disk went away" in str(result.status)


def test_a_given_state_does_not_skip_batches():
    """Only a resume knows that a stream started over; a generator simply goes on."""
    data = bl.Data(NOISY.data[0], numbered())
    first = solve(NOISY.problem, data=data, steps=5)
    rest = bl.solve(
        NOISY.problem, SOBA(0.01, 0.4, 0.4), state=first.state, data=data, steps=5, progress=False
    )
    whole = solve(NOISY.problem, data=bl.Data(NOISY.data[0], numbered()), steps=10)
    np.testing.assert_allclose(rest.x, whole.x, rtol=1e-10)


class Indexed(bl.methods.AbstractMethod):
    """Reports the row numbers, which methods with tables go by."""

    supports = frozenset()
    memory = "x, y"
    paper = bl.methods.Paper("Nobody", "A test", "Nowhere", "0000.00000")

    def init(self, problem, x0, y0, *, key=None):
        x, y, v = map(bl.trees.copy, (x0, y0, y0))
        return TrackedState(jnp.int32(0), x, y, v, (None, None, None))

    def step(self, problem, state, batch):
        return state._replace(k=state.k + 1), {"row": batch.index.lower[0]}

    def draws(self, problem):
        return bl.Draws(1, 1)

    def price(self, problem):
        return bl.oracles.Price()


def test_finite_sum_batches_carry_their_row_numbers():
    data = bl.Data(*NOISY.data, batch_size=1)
    result = solve(NOISY.problem, Indexed(), data=data, steps=8, log_every=1, certify=False)
    assert sorted(result.history["row"][1:]) == list(range(8))


# --- declared structure --------------------------------------------------------------------


def test_declared_hypergradient_and_lower_step():
    """A Newton step below and the closed form above make TTSA exact gradient descent."""
    problem = bl.Problem(
        CASE.problem.upper,
        CASE.problem.lower,
        hypergradient=lambda x, y, batch: CASE.gradient(x),
        lower_step=lambda x, y, batch: CASE.y_star(x),
    )
    result = solve(problem, bl.methods.TTSA(0.05, 0.1), steps=10, certify=False)
    np.testing.assert_allclose(result.x, [-0.1818216423, 0.3459085608], atol=1e-9)


def test_declared_lower_step_with_memory():
    class Momentum:
        def init(self, x, y):
            return jnp.zeros_like(y)

        def __call__(self, x, y, memory, batch):
            memory = 0.5 * memory + jax.grad(CASE.problem.lower, argnums=1)(x, y, batch)
            return y - 0.2 * memory, memory

    problem = bl.Problem(CASE.problem.upper, CASE.problem.lower, lower_step=Momentum())
    method = bl.methods.StocBiO(0.05, linear=bl.linear.CG(3), lower_steps=20)
    result = solve(problem, method, steps=300, certify=False)
    assert distance(result.x, CASE.x_star) < 1e-3


# --- what is refused -----------------------------------------------------------------------

f, g = CASE.problem.upper, CASE.problem.lower
REFUSED = {
    "two arguments": (
        {"problem": bl.Problem(lambda x, y: x @ x, g)},
        "upper.*takes two.*Add a third",
    ),
    "no mean": (
        {"problem": bl.Problem(f, lambda x, y, b: y * y)},
        r"lower returned float64\[3\].*mean",
    ),
    "tuple": (
        {"problem": bl.Problem(f, lambda x, y, b: (g(x, y, b), 0))},
        "lower returned a tuple",
    ),
    "integer loss": ({"problem": bl.Problem(f, lambda x, y, b: jnp.argmax(y))}, "floating scalar"),
    "swapped losses": ({"problem": bl.Problem(g, lambda x, y, b: y @ y)}, "swapped"),
    "forgotten data": (
        {"problem": bl.Problem(f, lambda x, y, b: ((b[0] @ y - x[0]) ** 2).mean())},
        r"batch = None.*It got no data: give bl\.Data",
    ),
    "lower ignores y inside jit": (
        {"problem": bl.Problem(f, jax.jit(lambda x, y, b: x @ x))},
        "lower does not depend on y",
    ),
    "a tuple for data": ({"data": NOISY.data}, r"data is of type tuple; bl\.Data"),
    "a number for a key": ({"key": 0}, r"key is 0; a random key.*jax\.random\.key"),
    "a number for a state": ({"x0": None, "y0": None, "state": 3}, "state is of type"),
    "a number for a callback": ({"callbacks": [3]}, "callbacks holds 3"),
    "a metric named step": ({"metrics": {"step": lambda x, y: 0.0}}, "hides a column"),
    "a metric named upper": ({"metrics": {"upper": lambda x, y: 0.0}}, "hides a column"),
    "lower ignores y": (
        {"problem": bl.Problem(f, lambda x, y, b: x @ x)},
        "lower does not depend on y",
    ),
    "upper ignores y": (
        {"problem": bl.Problem(lambda x, y, b: x @ x, g)},
        "upper does not depend on y",
    ),
    "integers": ({"y0": jnp.zeros(3, int)}, r"y0 is int64\[3\]; only floating"),
    "NaN": ({"x0": jnp.array([jnp.nan, 0])}, "x0 contains a NaN"),
    "wrong structure": (
        {"problem": bl.Problem(f, lambda x, y, b: y @ y * x[0] + x @ x), "x0": {"a": CASE.x0}},
        r"could not be evaluated at x = \{a: float64\[2\]\}",
    ),
    "wrong shape": ({"x0": jnp.zeros(5)}, r"could not be evaluated at x = float64\[5\]"),
    "empty tree": ({"x0": {}}, "x0 holds no arrays"),
    "missing": ({"x0": None}, "x0 is missing"),
    "text": ({"x0": "zero"}, "x0 is of type str"),
    "no steps": ({"steps": 0}, "steps is 0"),
    "negative steps": ({"steps": -3}, "steps is -3"),
    "fractional steps": ({"steps": 1.5}, "steps is 1.5"),
    "log_every": ({"log_every": 0}, "log_every is 0"),
    "class for method": ({"method": SOBA}, r"create one: SOBA\(\)"),
    "not a method": ({"method": 3}, "one of bilevel.methods"),
    "not a problem": ({"problem": f}, "bl.Problem"),
    "metric of one argument": ({"metrics": {"m": lambda x: 0.0}}, r"metrics\['m'\].*takes one"),
    "vector metric": ({"metrics": {"m": lambda x, y: y}}, r"metrics\['m'\] returned float64\[3\]"),
    "best of nothing": ({"keep": "loss"}, "names no metric"),
    "box of another shape": (
        {"problem": bl.Problem(f, g, upper_set=bl.sets.Box(jnp.zeros(4), jnp.ones(4)))},
        "upper_set .Box. does not fit x0",
    ),
    "unwritable folder": ({"checkpoint": "/proc/none"}, "cannot be written"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_use_is_one_sentence_before_compiling(name, monkeypatch):
    settings, sentence = REFUSED[name]
    monkeypatch.setattr(chunks.Loop, "__call__", compiles)
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        solve(**settings)
    assert "\n" not in str(caught.value)


def compiles(*_):
    raise AssertionError("the loop was reached")


def test_a_state_of_another_method_is_refused():
    other = bl.methods.F2SA()
    state = other.init(CASE.problem, CASE.x0, CASE.y0)
    with pytest.raises(ValueError, match="SOBA cannot step from this state, a PenaltyState"):
        bl.solve(CASE.problem, SOBA(), state=state, progress=False)


SETTINGS = {
    "no lower steps": (lambda: bl.methods.StocBiO(lower_steps=0), "lower_steps is 0"),
    "a number for a solver": (
        lambda: bl.methods.TTSA(linear=3),
        "linear is 3, and an object of",
    ),
    "text for a step": (lambda: SOBA("fast"), "'fast' is no step size"),
    "no terms": (lambda: bl.linear.RandomizedNeumann(0), "terms is 0"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_settings_are_refused_where_they_are_written(name):
    make, sentence = SETTINGS[name]
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def test_a_partial_loss_keeps_its_static_arguments():
    def lower(x, y, batch, scale, power, reduce):
        return getattr(jnp, reduce)(scale * (y - x[0]) ** power)

    made = functools.partial(lower, scale=np.ones(3), power=2, reduce="sum")
    problem = bl.Problem(lambda x, y, b: (y @ y) / 2 + x @ x, made)
    assert solve(problem, steps=5).status.ok
    assert solve(copy.deepcopy(problem), steps=5).status.ok


def test_a_polyhedron_is_refused_alone_and_in_company():
    row = bl.sets.Polyhedron(A=jnp.ones((1, 3)), b=jnp.ones(1))
    for lower_set in (row, (row,), (row, bl.sets.Box(0.0, 1.0))):
        with pytest.raises(bl.methods.Unsupported):
            solve(bl.Problem(f, g, lower_set=lower_set), bl.methods.F2SA())


def test_set_of_the_wrong_type():
    with pytest.raises(TypeError, match="upper_set is a float; a set of"):
        bl.Problem(f, g, upper_set=3.0)


def test_what_a_callback_keeps_stays_readable():
    kept = []
    solve(steps=30, callbacks=[lambda step, state, row: kept.append(state)], log_every=10)
    assert [int(state.k) for state in kept] == [10, 20, 30]


def test_ctrl_c_inside_a_chunk_ends_after_it_with_the_state():
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    result = solve(steps=100_000_000, log_every=200_000, certify=False)
    assert result.status.outcome is bl.Outcome.INTERRUPTED
    assert int(result.state.k) == result.stats.steps > 0
    assert signal.getsignal(signal.SIGINT) is before


def test_keyboard_interrupt_returns_what_there_is():
    def press(step, state, row):
        raise KeyboardInterrupt

    result = solve(steps=50, log_every=10, callbacks=[press])
    assert result.status.outcome is bl.Outcome.INTERRUPTED
    assert result.stats.steps == 10


def test_progress_bar_is_quiet_when_not_a_terminal(capfd):
    bl.solve(CASE.problem, SOBA(), CASE.x0, CASE.y0, steps=5)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_progress_bar_shows_method_and_values(capfd):
    solve(steps=20, log_every=10, progress=True)
    _, err = capfd.readouterr()
    assert "SOBA" in err
    assert "20/20" in err


def test_no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(steps=3)
