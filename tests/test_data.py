"""What a batch is, and that it depends on the key and the step alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.problem import Batch, Draws, Later, Same, Stacked, as_samples

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


def test_several_draws_continue_the_same_walk():
    one = lower_batches(feed(batch_size=3), 6)
    three = feed(Draws(1, 3), batch_size=3)
    for k in range(2):
        stacked = three.batch(jnp.int32(k)).lower.stack(3)
        np.testing.assert_array_equal(stacked, one[3 * k : 3 * k + 3])


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
    assert isinstance(stacked.skip(1), Later)
    assert as_samples(None, 4)[2] is None
    assert isinstance(as_samples(None, 4).skip(2), Same)


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


def test_text_is_refused():
    with pytest.raises(TypeError, match="is text"):
        bl.Data(lower="train.csv")


def test_run_refuses_an_iterator():
    with pytest.raises(TypeError, match=r"bl\.solve"):
        bl.Data(lower=iter([ROWS])).feed(KEY, Draws(1, 1))
