"""Every method on a mesh of eight devices: the same result, in split arrays.

JAX counts its devices once, so one child process runs all comparisons and prints a line for each.
"""

import dataclasses
import functools
import json
import tempfile
import traceback
from typing import NamedTuple

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import METHODS, Scales
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import bilevel as bl
from bilevel import sharding

pytestmark = pytest.mark.xdist_group("devices")  # one child for all
DEVICES, ROWS, FEATURES, SIZE, STEPS = 8, 64, 16, 16, 6
TOLERANCE = 3e-9  # STN takes differences over 1e-3, which multiplies rounding by 1e6


# --- in the parent -------------------------------------------------------------------------


class Run(NamedTuple):
    """What one child compares: methods, with mini-batches or all rows at every step."""

    samples: str
    names: frozenset[str]
    checks: bool = False


A_FEW = frozenset({"SOBA", "F3SA"})
RUNS = {
    "a few": Run("batches", A_FEW, checks=True),
    "the others": Run("batches", frozenset(METHODS) - A_FEW),
    "whole data": Run("whole", frozenset(METHODS)),
}
CASES = [(run, name) for run, compared in RUNS.items() for name in sorted(compared.names)]


@functools.cache
def told(run):
    """What the child printed: a line for each method and for each check."""
    lines = children.answers("test_devices", "main", run, devices=DEVICES)
    return {line["name"]: line for line in lines}


@pytest.mark.slow(unless=lambda run: run == "a few")
@pytest.mark.parametrize(("run", "name"), CASES)
def test_a_mesh_gives_the_result_of_one_device(run, name):
    row = told(run)[name]
    assert "error" not in row, row["error"]
    assert row["distance"] < TOLERANCE
    assert row["moved"] > 1e-6  # from the start: equal because nothing moved proves nothing


@pytest.mark.slow(unless=lambda run: run == "a few")
@pytest.mark.parametrize(("run", "name"), CASES)
def test_what_is_shaped_like_y_is_split(run, name):
    row = told(run)[name]
    assert "error" not in row, row["error"]
    assert row["y_split"] == row["y_leaves"]


CHECKS = {}


def check(fn):
    """Runs in the child; a test of that name tells how it went."""
    CHECKS[fn.__name__] = fn
    return fn


def pytest_generate_tests(metafunc):
    if "check_name" in metafunc.fixturenames:
        metafunc.parametrize("check_name", CHECKS)


def test_check(check_name):
    row = told("a few")[check_name]
    assert "error" not in row, row["error"]


# --- in the child --------------------------------------------------------------------------


def main(run):
    compared = RUNS[run]
    for name in sorted(compared.names):
        tell(name, functools.partial(compare, name, compared.samples))
    for name, fn in CHECKS.items() if compared.checks else ():
        tell(name, fn)


def tell(name, fn):
    try:
        found = fn() or {}
    except Exception:
        found = {"error": traceback.format_exc()}
    print(json.dumps({"name": name, **found}), flush=True)


def upper(x, y, batch):
    """Fit of the weights; the intercepts should be small."""
    rows, targets = batch
    return 0.5 * jnp.mean((rows @ y["w"] - targets) ** 2) + 0.05 * jnp.sum(y["b"] ** 2)


def lower(x, y, batch):
    """Ridge regression with a penalty for each feature, on a loss that is not quadratic."""
    rows, targets = batch
    fit = jnp.mean(jnp.log(jnp.cosh(rows @ y["w"] + jnp.sum(y["b"]) - targets)))
    return (
        fit
        + 0.5 * jnp.sum((0.1 + jax.nn.sigmoid(x.ravel())) * y["w"] ** 2)
        + 0.2 * jnp.sum(y["b"] ** 2)
    )


PROBLEM = bl.Problem(upper, lower)
SCALES = Scales(upper=0.5, lower=0.4, first=0.4, mu=2.4)  # few terms of a series


def level(seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(ROWS, FEATURES)) / np.sqrt(FEATURES)
    return rows, rows @ random.normal(size=FEATURES) + 0.1 * random.normal(size=ROWS)


def starts():
    random = np.random.default_rng(2)
    x0 = random.normal(size=(DEVICES, FEATURES // DEVICES))  # not shaped like y
    return x0, {"w": random.normal(size=FEATURES), "b": np.array([0.1, -0.2, 0.3])}


def row_mesh(devices=None):
    devices = np.array(jax.devices()[:devices])
    return Mesh(devices, ("rows",))


def put(tree, mesh, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def data(mesh=None, **settings):
    both = level(0), level(1)
    return bl.Data(*(both if mesh is None else put(both, mesh, "rows")), **settings)


def final(method, x0, y0, steps=STEPS, **settings):
    state = method.init(PROBLEM, x0, y0, key=jax.random.key(5))
    return bl.run(PROBLEM, method, state, key=jax.random.key(6), steps=steps, **settings)[0]


def compare(name, samples):
    """y split and x copied on whole data; both split on batches."""
    method = METHODS[name].build(SCALES, 0.5)
    settings = {"whole": {}, "batches": {"batch_size": SIZE}}[samples]
    if settings and hasattr(method, "lower_slots"):  # a table, with a slot for each batch
        slots = {"upper_slots": ROWS // SIZE, "lower_slots": ROWS // SIZE}
        method, settings["order"] = dataclasses.replace(method, **slots), "partition"
    mesh, (x0, y0) = row_mesh(), starts()
    one = final(method, x0, y0, data=data(**settings))
    x = put(x0, mesh) if samples == "whole" else sharding.split(x0, mesh)
    y = sharding.split(y0, mesh)
    many = final(method, x, y, data=data(mesh, **settings))
    like_y = [leaf for leaf in jax.tree.leaves(many) if leaf.shape[-1:] == (FEATURES,)]
    return {
        "distance": distance(many, one),
        "moved": distance((one.x, one.y), (x0, y0)),
        "y_leaves": len(like_y),
        "y_split": sum(is_split(leaf) for leaf in like_y),
    }


def distance(a, b) -> float:
    """The largest difference of two leaves, against their size."""

    def apart(p, q):
        if jnp.issubdtype(p.dtype, jax.dtypes.prng_key):
            p, q = jax.random.key_data(p), jax.random.key_data(q)
        p, q = np.asarray(p, float), np.asarray(q, float)
        return np.max(np.abs(p - q), initial=0.0) / (1 + np.max(np.abs(q), initial=0.0))

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(apart(p, q)) for p, q in pairs)


def is_split(leaf) -> bool:
    return not leaf.sharding.is_fully_replicated


def soba():
    return bl.methods.SOBA(0.05, 0.2, 0.2)


def solved(x0, y0, **settings):
    settings = {"steps": 9, "log_every": 3, "progress": False, **settings}
    return bl.solve(PROBLEM, soba(), x0, y0, **settings)


@check
def solve_gives_the_result_of_one_device():
    mesh, (x0, y0) = row_mesh(), starts()
    one = solved(x0, y0, data=data(batch_size=16))
    many = solved(x0, sharding.split(y0, mesh), data=data(mesh, batch_size=16))
    assert distance(many.state, one.state) < TOLERANCE
    assert distance(many.history["upper"][1:], one.history["upper"][1:]) < TOLERANCE
    assert distance(many.certificate.stationarity, one.certificate.stationarity) < 1e-6
    assert is_split(many.y["w"])
    assert is_split(many.state.v["w"])
    assert not is_split(many.x)


@check
def data_alone_on_a_mesh_will_do():
    x0, y0 = starts()
    one = solved(x0, y0, data=data(batch_size=16))
    many = solved(x0, y0, data=data(row_mesh(), batch_size=16))
    assert distance(many.state, one.state) < TOLERANCE


@check
def every_chunk_is_the_same_program():
    """A state that comes back in other places would compile the loop again."""
    from bilevel.driver.chunks import _advance
    from bilevel.driver.programs import _programs

    def compiled():
        kept = [
            jitted
            for mine in _programs.values()
            for key, jitted in mine.items()
            if key[0] is _advance
        ]
        return sum(jitted._cache_size() for jitted in kept)

    mesh, (x0, y0) = row_mesh(), starts()
    before = compiled()
    solved(x0, sharding.split(y0, mesh), data=data(mesh, batch_size=8), steps=12)
    assert compiled() == before + 1


@check
def replacement_gives_the_result_of_one_device():
    mesh, (x0, y0) = row_mesh(), starts()
    settings = {"batch_size": 16, "order": "replacement"}
    one = final(soba(), x0, y0, data=data(**settings))
    many = final(soba(), x0, sharding.split(y0, mesh), data=data(mesh, **settings))
    assert distance(many, one) < TOLERANCE


@check
def slices_hold_the_rows_of_one_device_an_equal_share_from_each():
    """With the natural stride and with that of several draws, past the end of the data."""
    numbers = np.arange(48)
    key, spread = jax.random.key(0), put(numbers, row_mesh(), "rows")
    for n in (1, 3):
        draws = bl.Draws(n, n)
        one = bl.Data(numbers, numbers, batch_size=16).feed(key, draws).lower
        many = bl.Data(spread, spread, batch_size=16).feed(key, draws).lower
        for k in range(7):
            for i in range(n):
                expected, found = (feed.draw(jnp.int32(k), n)[i] for feed in (one, many))
                assert sorted(np.asarray(expected)) == sorted(np.asarray(found))
                np.testing.assert_array_equal(many.rows(jnp.int32(k), n)[i], found)
                assert found.sharding.shard_shape(found.shape) == (2,)


@check
def a_partition_is_the_one_of_one_device():
    numbers = np.arange(48)
    key, spread, draws = jax.random.key(0), put(numbers, row_mesh(), "rows"), bl.Draws(1, 1)
    one, many = (
        bl.Data(rows, rows, batch_size=16, order="partition").feed(key, draws).upper
        for rows in (numbers, spread)
    )
    for k in range(5):
        expected, found = (np.asarray(feed.draw(jnp.int32(k), 1)[0]) for feed in (one, many))
        np.testing.assert_array_equal(expected, np.sort(found))
        np.testing.assert_array_equal(many.rows(jnp.int32(k), 1)[0], found)


@check
def a_batch_is_taken_without_passing_the_data_around():
    mesh, (x0, y0) = row_mesh(), starts()
    feed = data(mesh, batch_size=16).feed(jax.random.key(0), bl.Draws(1, 1))
    state = soba().init(PROBLEM, put(x0, mesh), sharding.split(y0, mesh))
    step = jax.jit(lambda state, feed: soba().step(PROBLEM, state, feed.batch(state.k)))
    passed = collectives(step.lower(state, feed).compile().as_text())
    assert passed
    assert max(passed) <= FEATURES  # entries of y or less; a batch has sixteen times as many


@check
def shuffling_never_gathers_all_rows_on_one_device():
    from bilevel.data.sources import _dealt

    rows = put(np.zeros((4096, 4)), row_mesh(), "rows")
    compiled = _dealt.lower(rows, jnp.arange(4096), 16, sharding.rows(rows)).compile()
    passed = collectives(compiled.as_text())
    assert passed
    assert max(passed) <= rows.size // DEVICES


def collectives(text: str) -> list[int]:
    """The entries of what compiled code passes between devices."""
    import re

    pattern = r"= \w+\[([\d,]*)\]\S* (?:all-|reduce-scatter|collective-)"
    shapes = re.findall(pattern, text)
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


@check
def a_stream_of_split_batches_stays_split():
    mesh, (x0, y0) = row_mesh(), starts()
    (train, valid), size = (level(0), level(1)), 16

    class Loader:
        def __init__(self, arrays, place):
            self.arrays, self.place = arrays, place

        def __iter__(self):
            for i in range(0, ROWS, size):
                yield self.place(tuple(leaf[i : i + size] for leaf in self.arrays))

    def result(place, y0):
        return solved(x0, y0, data=bl.Data(Loader(train, place), Loader(valid, place)))

    one = result(lambda batch: batch, y0)
    many = result(lambda batch: put(batch, mesh, "rows"), sharding.split(y0, mesh))
    assert distance(many.state, one.state) < TOLERANCE


@check
def two_axes_split_rows_and_variables():
    devices = np.array(jax.devices()).reshape(2, 4)
    mesh, (x0, y0) = Mesh(devices, ("rows", "model")), starts()
    one = final(soba(), x0, y0, data=data(batch_size=16))
    y = sharding.split(y0, mesh, "model")
    many = final(soba(), x0, y, data=data(mesh, batch_size=16))
    assert distance(many, one) < TOLERANCE
    assert many.y["w"].sharding.spec == PartitionSpec("model")


@check
def a_mesh_with_explicit_axes_is_read_as_one_without():
    """Newer versions of JAX make such by default."""
    mesh, (x0, y0) = jax.make_mesh((DEVICES,), ("rows",), axis_types=(AxisType.Explicit,)), starts()
    one = solved(x0, y0, data=data(batch_size=16))
    many = solved(put(x0, mesh), sharding.split(y0, mesh), data=data(mesh, batch_size=16))
    assert distance(many.state, one.state) < TOLERANCE
    assert is_split(many.y["w"])


@check
def a_checkpoint_goes_on_in_its_places_and_on_other_devices():
    mesh, (x0, y0) = row_mesh(), starts()
    y, settings = sharding.split(y0, mesh), {"data": data(mesh, batch_size=16)}
    whole = solved(x0, y, steps=20, **settings)
    with tempfile.TemporaryDirectory() as folder:
        solved(x0, y, steps=6, checkpoint=folder, **settings)
        again = solved(x0, y, steps=12, checkpoint=folder, **settings)
        assert "resumed from step 6" in again.stats.notes[0]
        assert is_split(again.state.v["w"])
        four = row_mesh(4)
        fewer = data(four, batch_size=16)
        solved(x0, sharding.split(y0, four), steps=16, checkpoint=folder, data=fewer)
        one = solved(x0, y0, steps=20, checkpoint=folder, data=data(batch_size=16))
        assert "resumed from step 16" in one.stats.notes[0]
        assert distance(one.state, whole.state) < TOLERANCE


@check
def a_resumed_run_is_bit_equal():
    mesh, (x0, y0) = row_mesh(), starts()
    y, settings = sharding.split(y0, mesh), {"data": data(mesh, batch_size=16)}
    whole = solved(x0, y, steps=12, **settings)
    with tempfile.TemporaryDirectory() as folder:
        solved(x0, y, steps=6, checkpoint=folder, **settings)
        again = solved(x0, y, steps=12, checkpoint=folder, **settings)
    assert distance(again.state, whole.state) == 0


@check
def a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size is 12, but.*split over 8.*multiple of 8"):
        data(row_mesh(), batch_size=12)


@check
def split_takes_the_longest_axis_that_divides():
    mesh = row_mesh()
    tree = {"w": np.ones((8, 24)), "b": np.ones(3), "c": 1.0}
    placed = sharding.split(tree, mesh)
    assert placed["w"].sharding.spec == PartitionSpec(None, "rows")
    assert placed["w"].sharding.shard_shape((8, 24)) == (8, 3)
    assert not is_split(placed["b"])
    assert not is_split(placed["c"])
