"""Direction estimators: their formulas, what they are exact for, and what they are unbiased for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import estimators
from bilevel.estimators.difference import Anchored
from bilevel.estimators.table import Slot

ROWS = jnp.array([[1.0, 0.5], [0.3, -1.0], [2.0, 1.5], [0.7, 0.2]])  # their mean is (1, 0.3)


def estimand(w, sample):
    """A nonlinear estimand; `sample` is a row of ROWS, or None for their mean."""
    row = ROWS.mean(0) if sample is None else sample
    return {"d": jnp.sin(w["w"]) * row, "e": row[0] * w["w"][0] ** 2}


def at(*values):
    return {"w": jnp.array(values)}


PATH = [at(0.1, 0.2), at(0.5, -0.3), at(1.5, 2.0), at(-0.7, 0.4), at(0.0, 1.0), at(0.3, 0.3)]


def directions(estimator, samples, path=PATH, start=None):
    """The direction at every point of the path."""
    memory = estimator.init(estimand, path[0], samples[0]) if start is None else start
    found = []
    for k, (point, sample) in enumerate(zip(path, samples, strict=True)):
        direction, memory = estimator.step(estimand, point, sample, memory, k)
        found.append(direction)
    return found


def close(a, b, rtol=1e-13):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=rtol, atol=1e-14), a, b)


def rows(n=len(PATH)):
    return [ROWS[i % len(ROWS)] for i in range(n)]


# --- without noise --------------------------------------------------------------------------

NOISELESS = {
    "SGD": (estimators.SGD(), None),
    "STORM 0": (estimators.STORM(0.0), None),
    "STORM 0.3": (estimators.STORM(0.3), None),
    "STORM 1": (estimators.STORM(1.0), None),
    "SPIDER 1": (estimators.SPIDER(1), Anchored(None, None)),
    "SPIDER 4": (estimators.SPIDER(4), Anchored(None, None)),
    "SAGA 1": (estimators.SAGA(1), Slot(None, jnp.array(0))),
    "MovingAverage 1": (estimators.MovingAverage(1.0), None),
}


@pytest.mark.parametrize("name", NOISELESS)
def test_exact_without_noise(name):
    estimator, sample = NOISELESS[name]
    for point, direction in zip(PATH, directions(estimator, [sample] * len(PATH)), strict=True):
        close(direction, estimand(point, None), rtol=1e-12)


def test_a_moving_average_lags_even_without_noise():
    last = directions(estimators.MovingAverage(0.3), [None] * len(PATH))[-1]
    assert abs(last["e"] - estimand(PATH[-1], None)["e"]) > 0.01


def test_saga_is_exact_once_the_point_has_rested_for_a_pass():
    slots = len(ROWS)
    samples = [Slot(ROWS[i % slots], jnp.array(i % slots)) for i in range(2 * slots)]
    found = directions(estimators.SAGA(slots), samples, [PATH[2]] * len(samples))
    for direction in found[slots:]:
        close(direction, estimand(PATH[2], None))


# --- the first direction ----------------------------------------------------------------------

FIRST = {
    "SGD": (estimators.SGD(), ROWS[2]),
    "MovingAverage": (estimators.MovingAverage(0.1), ROWS[2]),
    "STORM": (estimators.STORM(0.1), ROWS[2]),
    "SPIDER": (estimators.SPIDER(5), Anchored(ROWS[0], ROWS[2])),
    "SAGA": (estimators.SAGA(4), Slot(ROWS[2], jnp.array(2))),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_direction_is_the_estimand(name):
    estimator, sample = FIRST[name]
    close(directions(estimator, [sample], PATH[:1])[0], estimand(PATH[0], ROWS[2]))


# --- formulas -----------------------------------------------------------------------------------


def test_moving_average_formula():
    found = directions(estimators.MovingAverage(0.3), rows())
    for k in range(1, len(PATH)):
        new = estimand(PATH[k], rows()[k])
        close(found[k], jax.tree.map(lambda d, n: 0.7 * d + 0.3 * n, found[k - 1], new))


def test_storm_formula():
    """`η D_new + (1 − η)(d + D_new − D_old)`, both on the new sample."""
    found = directions(estimators.STORM(0.3), rows())
    for k in range(1, len(PATH)):
        new, old = estimand(PATH[k], rows()[k]), estimand(PATH[k - 1], rows()[k])
        expected = jax.tree.map(lambda n, d, o: 0.3 * n + 0.7 * (d + n - o), new, found[k - 1], old)
        close(found[k], expected)


def test_storm_with_full_weight_is_sgd():
    found = directions(estimators.STORM(1.0), rows())
    close(found, directions(estimators.SGD(), rows()))


def test_spider_formula():
    small, large = rows(), rows()[::-1]
    samples = [Anchored(s, b) for s, b in zip(small, large, strict=True)]
    found = directions(estimators.SPIDER(3), samples)
    for k, point in enumerate(PATH):
        expected = estimand(point, large[k])
        if k % 3:
            new, old = estimand(point, small[k]), estimand(PATH[k - 1], small[k])
            expected = jax.tree.map(lambda d, n, o: d + n - o, found[k - 1], new, old)
        close(found[k], expected)


def test_saga_formula():
    order = [2, 0, 2, 3, 1, 0]
    found = directions(estimators.SAGA(4), [Slot(ROWS[i], jnp.array(i)) for i in order])
    table = np.zeros((4, 2))
    for point, i, direction in zip(PATH, order, found, strict=True):
        new = np.asarray(estimand(point, ROWS[i])["d"])
        np.testing.assert_allclose(direction["d"], new - table[i] + table.mean(0), rtol=1e-12)
        table[i] = new


def test_the_table_is_updated_in_place():
    """No copy of it inside a compiled loop: the loop needs no room of its size."""
    slots, size = 500, 200
    estimator = estimators.SAGA(slots)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(memory, w):
        def body(carry, k):
            memory, w = carry
            d, memory = estimator.step(lambda w, s: w * s, w, Slot(0.5, k % slots), memory, k)
            return (memory, w - 0.1 * d), None

        return jax.lax.scan(body, (memory, w), jnp.arange(2000))[0]

    w = jnp.ones(size)
    memory = estimator.init(lambda w, s: w * s, w, Slot(0.5, jnp.array(0)))
    needed = run.lower(memory, w).compile().memory_analysis().temp_size_in_bytes
    assert needed < memory.slots.nbytes / 4


def test_the_mean_over_several_samples():
    samples = bl.problem.Stacked(ROWS)
    found = estimators.mean_over(lambda row: estimand(PATH[1], row), samples, 4)
    close(found, estimand(PATH[1], None))
    counted = []
    estimators.mean_over(lambda row: counted.append(1) or row, bl.problem.RepeatedBatch(ROWS), 4)
    assert len(counted) == 1


def test_a_schedule_sets_the_weight():
    weight = lambda k: 1.0 / (k + 1)  # noqa: E731
    found = directions(estimators.MovingAverage(weight), rows(4), [PATH[0]] * 4)
    close(found[-1], estimand(PATH[0], ROWS.mean(0)))  # a running mean


# --- unbiasedness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [0, 3, 6])
def test_saga_is_unbiased_over_the_index_whatever_the_table(passed):
    estimator = estimators.SAGA(4)
    memory = estimator.init(estimand, PATH[0], Slot(ROWS[0], jnp.array(0)))
    for k in range(passed):
        sample = Slot(ROWS[k % 3], jnp.array(k % 3))
        _, memory = estimator.step(estimand, PATH[k], sample, memory, k)
    outcomes = [
        estimator.step(estimand, at(0.9, -0.4), Slot(ROWS[i], jnp.array(i)), memory, passed)[0]
        for i in range(4)
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *outcomes)
    close(mean, estimand(at(0.9, -0.4), None))


@pytest.mark.parametrize(
    "estimator", [estimators.STORM(0.3), estimators.SPIDER(9)], ids=["STORM", "SPIDER"]
)
def test_differences_keep_the_mean_of_the_error(estimator):
    """Over a uniform sample, the mean error is (1 − η) times the last error, or the last error."""
    wrap = (lambda s: Anchored(s, s)) if isinstance(estimator, estimators.SPIDER) else (lambda s: s)
    keep = 1.0 if isinstance(estimator, estimators.SPIDER) else 0.7
    memory = estimator.init(estimand, PATH[0], wrap(ROWS[0]))
    first, memory = estimator.step(estimand, PATH[0], wrap(ROWS[0]), memory, 0)
    last_error = first["d"] - estimand(PATH[0], None)["d"]
    mean = sum(estimator.step(estimand, PATH[1], wrap(r), memory, 1)[0]["d"] for r in ROWS) / 4
    close(mean - estimand(PATH[1], None)["d"], keep * last_error)


# --- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_a_scan_with_donated_memory(name):
    """The memory may be donated, and a scan gives what a Python loop gives."""
    estimator, sample = FIRST[name]

    def stacked(index):
        row = ROWS[index]
        return {
            "SPIDER": lambda: Anchored(row, row),
            "SAGA": lambda: Slot(row, index),
        }.get(name, lambda: row)()

    @functools.partial(jax.jit, donate_argnums=0)
    def run(memory, path, indices):
        def body(memory, now):
            k, point, index = now
            direction, memory = estimator.step(estimand, point, stacked(index), memory, k)
            return memory, direction

        return jax.lax.scan(body, memory, (jnp.arange(len(indices)), path, indices))

    indices = jnp.arange(len(PATH)) % len(ROWS)
    path = jax.tree.map(lambda *leaves: jnp.stack(leaves), *PATH)
    memory = estimator.init(estimand, PATH[0], sample)
    _, found = run(memory, path, indices)
    expected = directions(estimator, [stacked(i) for i in indices])
    close(found["d"], jnp.stack([d["d"] for d in expected]))


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_are_those_of_the_estimand(name, dtype):
    estimator, sample = FIRST[name]
    if isinstance(estimator, (estimators.STORM, estimators.MovingAverage)):
        estimator = type(estimator)(jnp.float64(0.1))
    narrow = lambda w, s: jax.tree.map(lambda leaf: leaf.astype(dtype), estimand(w, s))  # noqa: E731
    memory = estimator.init(narrow, PATH[0], sample)
    for k in range(2):
        direction, after = estimator.step(narrow, PATH[k], sample, memory, jnp.array(k))
        assert {leaf.dtype for leaf in jax.tree.leaves(direction)} == {jnp.dtype(dtype)}
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, memory)
        memory = after


def test_saga_in_half_precision_keeps_its_mean():
    """A thousand small rows: in half precision each change of the mean would round away."""
    estimator, one = estimators.SAGA(1000), jnp.ones((), jnp.bfloat16)

    def body(memory, i):
        return estimator.step(lambda w, s: w, one, Slot(None, i), memory, i)[1], None

    memory = estimator.init(lambda w, s: w, one, Slot(None, jnp.array(0)))
    memory, _ = jax.lax.scan(body, memory, jnp.arange(1000))
    np.testing.assert_allclose(memory.mean, 1.0, rtol=1e-3)


def test_a_sweep_over_weights_is_one_vmap():
    def last(weight):
        return directions(estimators.STORM(weight), rows())[-1]

    swept = jax.vmap(last)(jnp.array([0.1, 0.9]))
    close(jax.tree.map(lambda leaf: leaf[1], swept), last(0.9))


# --- many blocks, a few drawn -------------------------------------------------------------------

SCALES = jnp.array([1.0, -0.5, 2.0])  # one a block


def block_estimand(w, sample):
    """A row for each drawn block; the sample's part is a row of ROWS, or None for their mean."""
    row, drawn = sample
    one = estimand(w, row)
    return jax.tree.map(lambda leaf: jnp.multiply.outer(SCALES[drawn], leaf), one)


def all_blocks(w, row=None):
    return block_estimand(w, estimators.Drawn(row, jnp.arange(3)))


def block_directions(estimator, samples, path=PATH):
    memory = estimator.init(block_estimand, path[0], samples[0])
    found = []
    for k, (point, sample) in enumerate(zip(path, samples, strict=True)):
        direction, memory = estimator.step(block_estimand, point, sample, memory, k)
        found.append(direction)
    return found


DRAWN = [[2, 0], [1, 2], [0, 1], [2, 1], [0, 2], [1, 0]]


def some_blocks():
    return [
        estimators.Drawn(row, jnp.array(drawn)) for row, drawn in zip(rows(), DRAWN, strict=True)
    ]


@pytest.mark.parametrize(
    "estimator",
    [estimators.MSVR(3, 0.3, 0.8), estimators.SparseSTORM(3, 0.3)],
    ids=["MSVR", "sparse"],
)
def test_block_formulas(estimator):
    """Written out once more, block by block."""
    found = block_directions(estimator, some_blocks())
    sparse = isinstance(estimator, estimators.SparseSTORM)
    d, seen = np.zeros((3, 2)), set()
    for k, (row, drawn) in enumerate(some_blocks()):
        new, old = (np.asarray(all_blocks(PATH[max(i, 0)], row)["d"]) for i in (k, k - 1))
        keep = 0.0 if k == 0 else 0.7
        if sparse:
            d = keep * d
        for b in np.asarray(drawn):
            if sparse:
                d[b] += 1.5 * (new[b] - keep * old[b])
            elif b in seen:
                d[b] = 0.7 * d[b] + 0.3 * new[b] + 0.8 * (new[b] - old[b])
            else:
                d[b] = new[b]
            seen.add(b)
        np.testing.assert_allclose(found[k]["d"], d, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("correction", [None, 0.7])
def test_with_all_blocks_both_are_storm(correction):
    """MSVR where a + γ = 1, which the theory's γ is."""
    samples = [estimators.Drawn(row, jnp.arange(3)) for row in rows()]
    storm = block_directions(estimators.STORM(0.3), samples)
    close(block_directions(estimators.MSVR(3, 0.3, correction), samples), storm, rtol=1e-12)
    close(block_directions(estimators.SparseSTORM(3, 0.3), samples), storm, rtol=1e-12)


def test_the_correction_of_the_theory():
    """(m − I)/(I (1 − a)) + 1 − a with m = 3, I = 2, a = 0.3."""
    gamma = 1 / (2 * 0.7) + 0.7
    found = block_directions(estimators.MSVR(3, 0.3), some_blocks())
    close(found, block_directions(estimators.MSVR(3, 0.3, gamma), some_blocks()), rtol=1e-12)


def test_sparse_storm_is_unbiased_over_blocks_and_samples():
    """The mean error over a uniform draw is (1 − η) times the last error."""
    estimator, pairs = estimators.SparseSTORM(3, 0.3), [[0, 1], [0, 2], [1, 2]]
    first = some_blocks()[0]
    memory = estimator.init(block_estimand, PATH[0], first)
    last, memory = estimator.step(block_estimand, PATH[0], first, memory, 0)
    draws = [estimators.Drawn(row, jnp.array(pair)) for row in ROWS for pair in pairs]
    found = [estimator.step(block_estimand, PATH[1], draw, memory, 1)[0]["d"] for draw in draws]
    error = sum(found) / len(found) - all_blocks(PATH[1])["d"]
    close(error, 0.7 * (last["d"] - all_blocks(PATH[0])["d"]), rtol=1e-12)
    outcomes = [estimator.step(block_estimand, PATH[0], draw, memory, 0)[0]["d"] for draw in draws]
    close(sum(outcomes) / len(outcomes), all_blocks(PATH[0])["d"], rtol=1e-12)  # the first
