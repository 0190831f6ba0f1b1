"""What a batch is, and that it depends on the key and the step alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import problems
from bilevel.problem import Batch, Draws, OffsetSamples, RepeatedBatch, Stacked, as_samples

ROWS = np.arange(10.0)
KEY = jax.random.key(0)


def feed(draws=Draws(1, 1), **settings):
    return bl.Data(lower=ROWS, **settings).feed(KEY, draws)


def lower_batches(feed, steps):
    return [np.asarray(feed.batch(jnp.int32(k)).lower) for k in range(steps)]


def test_no_batch_size_gives_all_rows():
    np.testing.assert_array_equal(feed().batch(jnp.int32(3)).lower, ROWS)


def test_epochs_show_every_row_equally_often():
    for size in (2, 3, 10):
        steps = 10 // np.gcd(10, size)
        seen = collections.Counter(np.concatenate(lower_batches(feed(batch_size=size), steps)))
        assert set(seen) == set(ROWS)
        assert len(set(seen.values())) == 1


WALKS = [(1100, 100, 11), (5000, 50, 20), (10, 4, 7), (8, 1, 11)]  # rows, batch, draws


@pytest.mark.parametrize(("n", "size", "draws"), WALKS)
def test_every_draw_of_a_step_comes_to_see_every_row(n, size, draws):
    """Also where draws x size shares divisors with n: no draw may be stuck on a few slices."""
    walk = bl.Data(lower=np.arange(n), batch_size=size).feed(KEY, Draws(1, draws))
    steps = jnp.arange(4 * n // size, dtype=jnp.int32)
    rows = jax.jit(jax.vmap(lambda k: walk.batch(k).lower.stack(draws)))(steps)
    for i in range(draws):
        assert len(np.unique(rows[:, i])) == n


def test_draws_of_a_step_are_different_rows():
    rows = feed(Draws(1, 3), batch_size=3).batch(jnp.int32(4)).lower.stack(3)
    assert len(np.unique(rows)) == 9


def test_draws_of_a_step_may_exceed_the_data():
    stacked = feed(Draws(1, 7), batch_size=4).batch(jnp.int32(5)).lower.stack(7)
    assert collections.Counter(np.ravel(stacked)).most_common(1)[0][1] == 3  # 28 of 10 rows


def test_replacement_draws_rows_independently():
    rows = np.concatenate(lower_batches(feed(batch_size=5, order="replacement"), 400))
    share = np.array(list(collections.Counter(rows).values())) / rows.size
    assert len(share) == 10
    np.testing.assert_allclose(share, 0.1, atol=0.03)


@pytest.mark.parametrize("order", ["epochs", "replacement"])
@pytest.mark.parametrize("draws", [1, 3])
def test_index_tells_the_row_numbers(order, draws):
    batch = feed(Draws(1, draws), batch_size=4, order=order).batch(jnp.int32(2))
    rows, index = batch.lower, batch.index.lower
    if draws > 1:
        rows, index = rows.stack(draws), index.stack(draws)
    np.testing.assert_array_equal(ROWS[np.asarray(index)], rows)


def test_a_partition_has_fixed_parts_drawn_evenly():
    walk = feed(batch_size=2, order="partition")
    assert (walk.parts.upper, walk.parts.lower) == (1, 5)
    drawn = [np.asarray(walk.batch(jnp.int32(k)).lower) for k in range(500)]
    counts = collections.Counter(map(tuple, drawn))
    assert set(counts) == {(2.0 * p, 2.0 * p + 1) for p in range(5)}
    assert min(counts.values()) > 60
    pairs = collections.Counter(zip(map(tuple, drawn), map(tuple, drawn[1:]), strict=False))
    assert len(pairs) == 25  # one draw says nothing about the next


@pytest.mark.parametrize("order", ["epochs", "partition"])
def test_draws_of_a_step_as_many_as_batches_are_all_rows_once(order):
    walk = feed(Draws(1, 5), batch_size=2, order=order)
    for k in range(4):
        rows = walk.batch(jnp.int32(k)).lower.stack(5)
        np.testing.assert_array_equal(np.sort(rows.ravel()), ROWS)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, 1),
        ({"batch_size": 1}, 10),
        ({"batch_size": 1, "order": "replacement"}, 10),
        ({"batch_size": 5, "order": "partition"}, 2),
        ({"batch_size": 10}, 1),
        ({"batch_size": 5}, None),
        ({"batch_size": 10, "order": "replacement"}, None),
    ],
)
def test_which_batches_are_fixed(given, parts):
    walk = feed(**given)
    assert walk.parts.lower == parts
    if parts is not None:  # batches and part numbers go together
        seen = {}
        for k in range(60):
            batch = walk.batch(jnp.int32(k))
            rows = batch.index.lower
            part = 0 if rows is None else int(rows[0]) // rows.size
            seen.setdefault(part, set()).add(tuple(np.sort(np.asarray(batch.lower))))
        assert set(seen) == set(range(parts))
        assert all(len(batches) == 1 for batches in seen.values())


SABA_REFUSES = {
    "shuffled batches, no slots": (
        {"batch_size": 2},
        (None, None),
        r"SABA.*new at each.*partition",
    ),
    "shuffled batches": ({"batch_size": 2}, (1, 4), r"SABA.*Data.upper.*new at each.*partition"),
    "too few slots": (
        {"batch_size": 2, "order": "partition"},
        (1, 4),
        r"upper_slots is 1, but Data.upper has 4 parts.*upper_slots=4",
    ),
    "too many slots": ({}, (1, 8), r"lower_slots is 8, but Data.lower has 1 parts"),
}


@pytest.mark.parametrize("name", SABA_REFUSES)
def test_tables_that_do_not_fit_the_data_are_refused(name):
    given, (upper, lower), sentence = SABA_REFUSES[name]
    case, data = problems.quad_noise(), bl.Data(*problems.quad_noise().data, **given)
    method = bl.methods.SABA(upper_slots=upper, lower_slots=lower)
    with pytest.raises(ValueError, match=sentence):
        bl.solve(case.problem, method, case.x0, case.y0, data=data, steps=5, progress=False)
    state = method.init(case.problem, case.x0, case.y0)
    with pytest.raises(ValueError, match=sentence):
        bl.run(case.problem, method, state, data=data, steps=5)


def test_a_batch_by_hand_needs_its_row_numbers_for_tables():
    case, method = problems.quad_noise(), bl.methods.SABA(lower_slots=8, upper_slots=8)
    with pytest.raises(ValueError, match=r"Batch.index.upper is None"):
        method.step(case.problem, method.init(case.problem, case.x0, case.y0), Batch(*case.data))


def test_long_runs_do_not_overflow():
    n, size = 1_000_003, 4096
    data = bl.Data(lower=np.arange(n), batch_size=size)
    walk = data.feed(KEY, Draws(1, 1))
    order = np.asarray(walk.lower.order)
    for k in (0, 1, 2**20 + 7, 2**31 - 2):
        batch = np.asarray(walk.batch(jnp.int32(k)).lower)
        assert batch[0] == order[k * size % n]


def test_key_decides_and_step_decides():
    again = lower_batches(feed(batch_size=3), 4)
    np.testing.assert_array_equal(lower_batches(feed(batch_size=3), 4), again)
    other = bl.Data(lower=ROWS, batch_size=3).feed(jax.random.key(1), Draws(1, 1))
    assert any((a != b).any() for a, b in zip(lower_batches(other, 4), again, strict=True))


def test_sampler_gets_a_new_key_for_every_draw():
    data = bl.Data(lower=lambda key: jax.random.normal(key, (2,)))
    walk = data.feed(KEY, Draws(1, 3))
    drawn = [np.asarray(walk.batch(jnp.int32(k)).lower.stack(3)) for k in range(2)]
    assert len(np.unique(np.ravel(drawn))) == 12


def test_levels_may_have_their_own_batch_size():
    data = bl.Data(upper=ROWS, lower=ROWS, batch_size=Batch(upper=2, lower=5))
    batch = data.feed(KEY, Draws(1, 1)).batch(jnp.int32(0))
    assert (batch.upper.shape, batch.lower.shape) == ((2,), (5,))


def test_handles():
    stacked = as_samples(jnp.arange(6.0).reshape(3, 2), 3)
    assert isinstance(stacked, Stacked)
    np.testing.assert_array_equal(stacked[1], [2.0, 3.0])
    np.testing.assert_array_equal(stacked.skip(1)[1], [4.0, 5.0])
    assert isinstance(stacked.skip(1), OffsetSamples)
    assert as_samples(None, 4)[2] is None
    assert isinstance(as_samples(None, 4).skip(2), RepeatedBatch)


BAD = {
    "unequal length": (lambda: bl.Data(lower=(ROWS, ROWS[:4])), "unequal length.*10.*4"),
    "empty": (lambda: bl.Data(lower=ROWS[:0]), "empty"),
    "no arrays": (lambda: bl.Data(lower=()), "holds no arrays"),
    "NaN": (lambda: bl.Data(upper=(ROWS, np.array([0.0] * 9 + [np.nan]))), "NaN, first in row 9"),
    "large batch": (lambda: bl.Data(lower=ROWS, batch_size=11), "11.*holds 10 rows"),
    "zero batch": (lambda: bl.Data(lower=ROWS, batch_size=0), "at least 1"),
    "unknown order": (lambda: bl.Data(lower=ROWS, order="sorted"), "epochs, replacement"),
    "single number": (lambda: bl.Data(lower=np.float64(3)), "single number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(name):
    make, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        make()


WRONG_TYPE = {
    "text": (lambda: bl.Data(lower="train.csv"), "is text"),
    "words": (lambda: bl.Data(lower=np.array(["a", "b"])), "numbers are needed"),
    "half a batch": (lambda: bl.Data(lower=ROWS, batch_size=2.5), "2.5; a whole number"),
}


@pytest.mark.parametrize("name", WRONG_TYPE)
def test_data_of_the_wrong_type_are_refused(name):
    make, sentence = WRONG_TYPE[name]
    with pytest.raises(TypeError, match=sentence):
        make()


def test_samples_share_no_key_with_a_method():
    problem = problems.quad().problem
    method = bl.methods.TTSA()
    state = method.init(problem, jnp.zeros(2), jnp.zeros(3), key=KEY)
    walk = bl.Data(upper=lambda k: k, lower=lambda k: k).feed(KEY, Draws(1, 1))
    made = [*jax.random.split(state.key), walk.upper.key, walk.lower.key]
    assert len({tuple(np.ravel(jax.random.key_data(key))) for key in made}) == 4


def test_a_plain_batch_for_several_draws_is_refused():
    """Its rows would be read as batches."""
    case = problems.quad_noise()
    method = bl.methods.StocBiO()
    state = method.init(case.problem, case.x0, case.y0)
    with pytest.raises(ValueError, match=r"uses 21 batches.*bl\.RepeatedBatch"):
        method.step(case.problem, state, Batch(*case.data))
    method.step(case.problem, state, Batch(case.data[0], RepeatedBatch(case.data[1])))


def test_run_refuses_what_solve_refuses():
    case = problems.lower_box()
    method = bl.methods.SOBA()
    state = method.init(case.problem, case.x0, case.y0)
    with pytest.raises(bl.methods.Unsupported, match="lower_set is a Box"):
        bl.run(case.problem, method, state, steps=3)
    quad = problems.quad()
    with pytest.raises(ValueError, match="steps is 0"):
        bl.run(quad.problem, method, method.init(quad.problem, quad.x0, quad.y0), steps=0)


def test_run_refuses_an_iterator():
    with pytest.raises(TypeError, match=r"bl\.solve"):
        bl.Data(lower=iter([ROWS])).feed(KEY, Draws(1, 1))
