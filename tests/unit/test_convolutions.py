"""Steps with convolutions on a CPU: no loop around them; where chunks end changes no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.driver.convolutions import has_convolution, unrolled

PICTURES = jax.random.normal(jax.random.key(0), (12, 6, 6, 1))
LABELS = (jnp.arange(12) % 2).astype(float)


def features(kernel, pictures):
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(pictures, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(out)


def loss(y, batch):
    pictures, labels = batch
    scores = features(y["kernel"], pictures).mean((1, 2)) @ y["head"]
    return jnp.mean((scores - labels) ** 2)


def problem():
    def lower(x, y, batch):
        decay = jnp.sum(y["kernel"] ** 2) + jnp.sum(y["head"] ** 2)
        return loss(y, batch) + jnp.exp(x) * decay

    return bl.Problem(lambda x, y, batch: loss(y, batch), lower)


PROBLEM = problem()


def start():
    kernel = 0.3 * jax.random.normal(jax.random.key(1), (3, 3, 1, 2))
    return jnp.array(-2.0), {"kernel": kernel, "head": jnp.ones(2)}


DATA = bl.Data(upper=(PICTURES[:6], LABELS[:6]), lower=(PICTURES, LABELS), batch_size=4)


def solve(method, **options):
    options = {"data": DATA, "certify": False, "progress": False} | options
    return bl.solve(PROBLEM, method, *start(), **options)


def same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(jax.device_get(left), jax.device_get(right))


def loops(fn, *args) -> int:
    return jax.jit(fn).lower(*args).as_text().count("stablehlo.while")


def test_a_short_loop_around_a_convolution_is_unrolled_and_others_stay():
    kernel = jnp.full((3, 3, 1, 1), 0.1)

    def fn(pictures, numbers):
        def lower(_, at):
            return jax.lax.fori_loop(0, 2, lambda _, p: features(kernel, p), at)

        numbers, _ = jax.lax.scan(lambda c, n: (c + n, None), 0.0, numbers)
        return jax.lax.fori_loop(0, 3, lower, pictures) + numbers

    args = PICTURES, jnp.arange(4.0)
    assert loops(unrolled(fn), *args) == 1  # the sum of numbers
    assert loops(unrolled(fn, most=5), *args) == 2  # of the outer loop, 3 of 6 are unrolled
    assert loops(unrolled(fn, most=1), *args) == 3
    at = PICTURES
    for _ in range(6):
        at = features(kernel, at)
    np.testing.assert_allclose(jax.jit(unrolled(fn))(*args), at + 6, rtol=1e-6)


def test_a_convolution_is_found_inside_nested_functions():
    kernel = jnp.ones((3, 3, 1, 1))
    nested = jax.vmap(jax.jit(lambda p: jax.checkpoint(features)(kernel, p[None])))
    grad = jax.grad(lambda p: nested(p).sum())
    assert has_convolution(jax.make_jaxpr(grad)(PICTURES).jaxpr)
    assert not has_convolution(jax.make_jaxpr(jnp.sin)(PICTURES).jaxpr)


@pytest.mark.slow
def test_where_chunks_end_changes_no_bit(tmp_path):
    method = bl.methods.StocBiO(0.05, 0.1, lower_steps=3)
    whole = solve(method, steps=7, log_every=7)
    one = solve(method, steps=7, log_every=1)
    same(whole.state, one.state)
    solve(method, steps=4, log_every=4, checkpoint=tmp_path)
    resumed = solve(method, steps=7, log_every=2, checkpoint=tmp_path)
    same(whole.state, resumed.state)
    state, _ = bl.run(  # the loop of XLA: its convolutions add in another order
        PROBLEM, method, method.init(PROBLEM, *start()), data=DATA, steps=7,
        key=jax.random.split(jax.random.key(0))[1],
    )  # fmt: skip
    np.testing.assert_allclose(whole.x, state.x, rtol=1e-5)


def test_where_chunks_of_a_single_loop_end_changes_no_bit():
    method = bl.methods.SOBA(0.05, 0.1, 0.1)
    same(*(solve(method, steps=3, log_every=n).state for n in (1, 3)))


def test_a_chunk_that_leaves_the_finite_numbers_gives_back_where_it_began():
    method = bl.methods.SOBA(0.0, 1e30, 0.0)
    result = solve(method, steps=6, log_every=6)
    assert not result.status.ok
    same(result.y, start()[1])
