"""Methods for finite sums with their default settings, on 5003 and 4001 rows: both are prime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import methods
from bilevel.data import UnevenBatch
from bilevel.problem import Draws

RIDGE = 0.5
UPPER, LOWER = 5003, 4001
DIM = 3


def rows():
    rng = np.random.default_rng(0)
    target = rng.normal([1.0, -2.0, 0.5], 1.0, (UPPER, DIM))
    curvature = rng.uniform(0.5, 2.5, (LOWER, DIM))
    coupling = rng.normal(1.0, 0.5, (LOWER, DIM))
    shift = rng.normal(0.5, 1.0, (LOWER, DIM))
    return target, (curvature, coupling, shift)


ROWS = rows()


def upper(x, y, target):
    return DIM * jnp.mean((y[None] - target) ** 2) / 2 + RIDGE * jnp.sum(x**2) / 2


def lower(x, y, batch):
    curvature, coupling, shift = batch
    return DIM * jnp.mean(curvature * y[None] ** 2 / 2 - y[None] * (coupling * x[None] + shift))


PROBLEM = bl.Problem(upper, lower)


def solution(inverse=lambda H: 1 / H):
    """Coordinate by coordinate; `inverse` is what the method takes for that of the Hessian."""
    target, (H, S, c) = ROWS[0].mean(0), (part.mean(0) for part in ROWS[1])
    v = S * inverse(H)
    return v * (target - c / H) / (v * S / H + RIDGE)


def series(H, steps=10, step=0.1):
    """The default Neumann series of VRBO."""
    return step * sum((1 - step * H) ** i for i in range(steps + 1))


def errors(method, data, steps, x_star, times=4):
    """‖x − x*‖ at the start and after each of some equal stretches."""
    method = method.for_data(data.batches)
    state = method.init(PROBLEM, jnp.zeros(DIM), jnp.zeros(DIM), key=jax.random.key(1))
    feed = data.feed(jax.random.key(0), method.draws(PROBLEM))
    found = [np.linalg.norm(state.x - x_star)]
    for _ in range(times):
        state, _ = jax.jit(lambda state: bl.run(PROBLEM, method, state, data=feed, steps=steps))(
            state
        )
        found.append(np.linalg.norm(state.x - x_star))
    return np.array(found)


def batches(order):
    return bl.Data(*ROWS, batch_size=16, order=order)


@pytest.mark.parametrize(
    ("method", "order", "steps", "x_star"),
    [
        pytest.param(methods.SRBA(), "epochs", 750, solution(), id="SRBA"),
        pytest.param(methods.SABA(), "partition", 3000, solution(), id="SABA"),
        pytest.param(methods.VRBO(), "epochs", 1000, solution(series), id="VRBO"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                (methods.SRBA(), "replacement", 750, solution()),
                (methods.SRBA(), "partition", 750, solution()),
                (methods.VRBO(), "replacement", 1000, solution(series)),
                (methods.VRBO(), "partition", 1000, solution(series)),
            )
        ),
    ],
)
def test_default_settings_converge_linearly(method, order, steps, x_star):
    """Each stretch of steps takes the error down by the same factor, to rounding."""
    found = errors(method, batches(order), steps, x_star)
    ratios = found[1:] / found[:-1]
    assert np.all((ratios < 0.02) | (found[1:] < 1e-12))
    assert found[-1] < 1e-11


def test_a_refresh_on_some_batches_leaves_noise():
    found = errors(methods.SRBA(period=16, restart=16), batches("epochs"), 1500, solution())
    assert found[-1] > 1e-3


def test_solve_reads_the_settings_from_the_data():
    result = bl.solve(
        PROBLEM,
        methods.SABA(),
        np.zeros(DIM),
        np.zeros(DIM),
        data=batches("partition"),
        steps=12_000,
        log_every=6000,
        progress=False,
        certify=False,
    )
    assert np.linalg.norm(result.x - solution()) < 1e-10


def test_settings_left_to_the_data():
    many = bl.Data(*ROWS, batch_size=16).batches
    assert (many.upper, many.lower) == (313, 251)
    saba, srba = methods.SABA().for_data(many), methods.SRBA().for_data(many)
    vrbo = methods.VRBO().for_data(many)
    assert (saba.upper_slots, saba.lower_slots) == (313, 251)
    assert srba.draws(PROBLEM) == Draws(1, 1)
    assert srba.price(PROBLEM).lower_grad == pytest.approx((313 + 2 * 312) / 313)
    assert vrbo.price(PROBLEM).lower_grad == 2 * 6 + 1
    set_by_hand = methods.SRBA(period=10, restart=20).for_data(many)
    assert set_by_hand.draws(PROBLEM) == Draws(20, 20)
    assert set_by_hand.price(PROBLEM).lower_grad == (20 + 18) / 10
    endless = bl.Data(lambda key: None, lambda key: None).batches
    assert methods.SRBA().for_data(endless).draws(PROBLEM) == Draws(16, 16)


def test_a_table_of_another_size_is_refused():
    method, data = methods.SABA(), batches("partition")
    state = method.init(PROBLEM, jnp.zeros(DIM), jnp.zeros(DIM))
    with pytest.raises(ValueError, match=r"slots is 313, but the state has a table of 1.*for_data"):
        bl.run(PROBLEM, method, state, data=data, steps=1)


# --- parts of two sizes ---------------------------------------------------------------------------


def test_uneven_parts_hold_every_row_once():
    data = bl.Data(lower=np.arange(11), batch_size=4, order="partition")
    feed = data.feed(jax.random.key(0), Draws(1, 3))
    assert feed.parts.lower == data.batches.lower == 3
    for k in range(3):
        batch = feed.batch(jnp.int32(k))
        parts = [batch.lower[i] for i in range(3)]
        assert all(isinstance(part, UnevenBatch) for part in parts)
        rows = [part.rows[1:] if part.short else part.rows for part in parts]
        assert sorted(map(len, rows)) == [3, 4, 4]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(11))
        slots = {int(batch.index.lower[i][0]) // len(batch.index.lower[i]) for i in range(3)}
        assert slots == {0, 1, 2}
    np.testing.assert_array_equal(feed.batch(jnp.int32(0)).whole.lower[0], np.arange(11))


def test_the_mean_over_uneven_parts_is_the_loss_of_all_rows():
    values = np.random.default_rng(1).normal(size=11)
    feed = bl.Data(lower=values, batch_size=4, order="partition").feed(
        jax.random.key(0), Draws(1, 3)
    )
    parts = feed.batch(jnp.int32(0)).lower
    loss = lambda x, part: part.weighed(lambda rows: jnp.mean((x - rows) ** 2) + x)  # noqa: E731
    mean = lambda x: sum(loss(x, parts[i]) for i in range(3)) / 3  # noqa: E731
    found = jax.jit(lambda x: (mean(x), jax.grad(mean)(x), jax.grad(jax.grad(mean))(x)))(2.0)
    expected = np.mean((2 - values) ** 2) + 2, 2 * np.mean(2 - values) + 1, 2
    np.testing.assert_allclose(found, expected)


def test_what_cannot_be_weighed_is_refused():
    problem = bl.Problem(upper, lower, hypergradient=lambda x, y, batch: x)
    with pytest.raises(ValueError, match=r"two sizes.*Give a batch_size that divides the rows"):
        bl.solve(
            problem,
            methods.TTSA(),
            np.zeros(DIM),
            np.zeros(DIM),
            data=batches("partition"),
            steps=1,
            progress=False,
        )
