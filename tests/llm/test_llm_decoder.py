"""The decoder: what transformers computes, in every layout, with padding that changes nothing."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import attention, decoder, parameters, rope
from bilevel.apps.llm.models.config import Layers, Llama3Scaling, Rope, llama
from bilevel.apps.llm.models.transformer import ComputeOptions, Remat

pytest.importorskip("safetensors")

GOLDENS = Path(__file__).parent.parent / "data" / "llm_goldens.npz"
SMALL = dataclasses.replace(llama(23, 8, 12, 2, 4, kv_heads=2), windows=(None, 3))


@pytest.fixture(scope="module")
def goldens():
    return np.load(GOLDENS)


@pytest.fixture(scope="module")
def params():
    return parameters.init(SMALL, jax.random.key(0), deviation=0.4)


# Compiled as a whole: one by one, the operations take longer.
logits = jax.jit(decoder.logits, static_argnums=0)
token_logprobs = jax.jit(
    decoder.token_logprobs, static_argnums=0, static_argnames=("chunk", "compute")
)


def tokens_of(seed: int, batch: int = 3, time: int = 9):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (batch, time))


# --- goldens -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", llm_cases.CASES)
def test_logits_are_those_of_transformers(name, goldens, tmp_path):
    loaded = checkpoint.load(llm_cases.write_folder(name, tmp_path / "model"))
    tokens, mask = map(jnp.asarray, llm_cases.rows())
    found = decoder.logits(loaded.config, loaded.params, tokens, mask)
    np.testing.assert_allclose(found[mask], goldens[name][mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama-v5-llama3", "qwen2-windows", "neox-v4"])
def test_a_scan_over_layers_gives_the_same_logits(name, goldens, tmp_path):
    folder = llm_cases.write_folder(name, tmp_path / "model")
    loaded = checkpoint.load(folder, layers=Layers.SCAN)
    tokens, mask = map(jnp.asarray, llm_cases.rows())
    found = decoder.logits(loaded.config, loaded.params, tokens, mask)
    np.testing.assert_allclose(found[mask], goldens[name][mask], atol=1e-4, rtol=0)


def test_goldens_tell_settings_apart(goldens):
    """A RoPE, window or residual that was not read would give another golden's logits."""
    same = {("llama-v4", "llama-v5"), ("llama-v4-linear", "llama-v5-linear")}
    same |= {("llama-v4-llama3", "llama-v5-llama3"), ("neox-v4", "neox-v5")}
    _, mask = llm_cases.rows()
    for first in llm_cases.CASES:
        for second in llm_cases.CASES:
            apart = np.abs(goldens[first] - goldens[second])[mask].max()
            if first == second or (first, second) in same or (second, first) in same:
                assert apart < 1e-5
            else:
                assert apart > 0.02, (first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", llm_cases.CASES)
def test_logits_are_those_of_transformers_now(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from data.make_llm_goldens import logits_of

    folder = llm_cases.write_folder(name, tmp_path / "model")
    tokens, mask = llm_cases.rows()
    loaded = checkpoint.load(folder)
    found = decoder.logits(loaded.config, loaded.params, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(found[mask], logits_of(folder, tokens, mask)[mask], atol=1e-4)


# --- padding and packing -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_padding_anywhere_changes_nothing(seed, params):
    """Any number of padding tokens, at any places, of any ids."""
    random = np.random.default_rng(seed)
    tokens = tokens_of(seed, batch=2, time=6)
    wide = random.integers(-5, 10_000, (2, 10))
    mask = np.zeros((2, 10), bool)
    for row in range(2):
        places = np.sort(random.choice(10, 6, replace=False))
        wide[row, places], mask[row, places] = tokens[row], True
    plain = logits(SMALL, params, jnp.asarray(tokens))
    padded = logits(SMALL, params, jnp.asarray(wide), jnp.asarray(mask))
    np.testing.assert_allclose(padded[mask].reshape(plain.shape), plain, atol=2e-5)
    plain = token_logprobs(SMALL, params, jnp.asarray(tokens))
    padded = token_logprobs(SMALL, params, jnp.asarray(wide), jnp.asarray(mask))
    np.testing.assert_allclose(padded[mask].reshape(plain.shape), plain, atol=2e-5)
    assert np.all(np.asarray(padded)[~mask] == 0)


@pytest.mark.parametrize("seed", range(3))
def test_packed_sequences_do_not_see_each_other(seed, params):
    tokens, segments = jnp.asarray(tokens_of(seed)), jnp.asarray([[1] * 4 + [0] + [2] * 4] * 3)
    whole = token_logprobs(SMALL, params, tokens, segments)
    for part in (slice(4), slice(5, None)):
        alone = token_logprobs(SMALL, params, tokens[:, part])
        np.testing.assert_allclose(whole[:, part], alone, atol=2e-5)


def test_what_comes_later_changes_nothing(params):
    tokens = jnp.asarray(tokens_of(0))
    changed = tokens.at[:, 5:].set(1)
    before, after = (logits(SMALL, params, t) for t in (tokens, changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 0.1


# --- log-probabilities ---------------------------------------------------------------------


@pytest.mark.slow(unless=lambda layers, padded: layers is Layers.LIST and padded)
@pytest.mark.parametrize(
    ("layers", "padded"),
    [(Layers.LIST, True), (Layers.LIST, False), (Layers.SCAN, True), (Layers.SCAN, False)],
)
def test_the_last_places_alone_are_as_in_the_whole_row(layers, padded, params):
    """Values and derivatives, where a layer sees all before it and where a window bounds it."""
    params = parameters.stack(params) if layers is Layers.SCAN else params
    tokens, query_start = jnp.asarray(tokens_of(2)), 5
    segments = jnp.asarray(np.arange(9) >= [[0], [2], [4]]) if padded else None

    def whole(params):
        return decoder.hidden(SMALL, params, tokens, segments)[:, query_start:]

    def part(params):
        return decoder.hidden(SMALL, params, tokens, segments, query_start=query_start)

    def both(states):
        def loss(params):
            found = states(params)
            return jnp.sin(found).sum(), found

        slope, found = jax.jit(jax.grad(loss, has_aux=True))(params)
        return found, slope

    close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
    jax.tree.map(close, both(part), both(whole))


def test_the_last_layer_computes_those_places_alone(params):
    def cost(query_start):
        asked = jax.jit(functools.partial(decoder.hidden, SMALL, query_start=query_start))
        return asked.lower(params, jnp.asarray(tokens_of(2))).compile().cost_analysis()["flops"]

    assert cost(8) < 0.8 * cost(0)


def test_token_logprobs_are_those_of_the_logits(params):
    tokens = jnp.asarray(tokens_of(1))
    scores = jax.nn.log_softmax(logits(SMALL, params, tokens))
    expected = np.take_along_axis(np.asarray(scores)[:, :-1], np.asarray(tokens)[:, 1:, None], -1)
    for chunk in (None, 4, 3, 256):
        found = token_logprobs(SMALL, params, tokens, chunk=chunk)
        np.testing.assert_allclose(found[:, 1:], expected[..., 0], atol=1e-5)
        assert np.all(found[:, 0] == 0)


def test_chunks_never_hold_all_scores():
    """The largest array of the compiled derivative is smaller than batch × time × vocabulary."""
    config = llama(4000, 8, 12, 1, 2)
    shapes = parameters.abstract(config)
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)

    def memory(chunk):
        def loss(params, tokens):
            return decoder.token_logprobs(config, params, tokens, chunk=chunk).sum()

        compiled = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(16) < 2 * 128 * 4000 * 4 < memory(None)


# --- derivatives ---------------------------------------------------------------------------

TINY = llama(11, 4, 6, 1, 2, kv_heads=1)  # compiled twice differentiated, so one layer


def tiny(seed=0, dtype=jnp.float32):
    return parameters.init(TINY, jax.random.key(seed), deviation=0.5, dtype=dtype)


def tiny_tokens(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 11, (3, 6)))


MASK = jnp.asarray([[False] * 6, [False] * 2 + [True] * 4, [True] * 5 + [False]])


def loss(params, tokens, segments, compute=ComputeOptions()):
    return decoder.token_logprobs(TINY, params, tokens, segments, compute=compute, chunk=4).sum()


@functools.partial(jax.jit, static_argnames="compute")
def gradient_and_product(params, direction, tokens, segments, compute=ComputeOptions()):
    def gradient(params):
        return jax.grad(loss)(params, tokens, segments, compute)

    return jax.jvp(gradient, (params,), (direction,))


def test_hessian_products_are_differences_of_gradients():
    params, direction = tiny(0, jnp.float64), tiny(1, jnp.float64)
    tokens = tiny_tokens(2)

    def gradient(h):
        there = jax.tree.map(lambda p, d: p + h * d, params, direction)
        return gradient_and_product(there, direction, tokens, MASK)[0]

    expected = jax.tree.map(lambda a, b: (a - b) / 2e-5, gradient(1e-5), gradient(-1e-5))
    product = gradient_and_product(params, direction, tokens, MASK)[1]
    assert any(np.abs(leaf).max() > 1 for leaf in jax.tree.leaves(product))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * (1 + np.abs(b).max())),
        product,
        expected,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "layers"), [(Remat.LAYERS, Layers.SCAN), (Remat.PRODUCTS, Layers.LIST)]
)
def test_what_is_kept_changes_no_derivative(remat, layers):
    tokens, params = tiny_tokens(3), tiny(0, jnp.float64)
    first = gradient_and_product(params, params, tokens, MASK)
    again = parameters.stack(params) if layers is Layers.SCAN else params
    second = gradient_and_product(again, again, tokens, MASK, compute=ComputeOptions(remat=remat))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * (1 + np.abs(a).max())),
        first,
        tuple(map(parameters.unstack, second)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "attend"), [(jnp.bfloat16, attention.plain), (jnp.float32, attention.fused)]
)
def test_rows_of_padding_alone_stay_finite(dtype, attend):
    params, compute = tiny(0, dtype), ComputeOptions(attention=attend, remat=Remat.LAYERS)
    both = gradient_and_product(params, params, tiny_tokens(4), MASK, compute=compute)
    for leaf in jax.tree.leaves(both):
        assert leaf.dtype == dtype
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


def test_rows_of_padding_alone_have_no_derivative():
    params = tiny(0, jnp.float64)
    both = gradient_and_product(params, params, tiny_tokens(4), jnp.zeros_like(MASK))
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(both))


@pytest.mark.parametrize("window", [None, 2])
def test_xla_attention_is_the_plain_one(window):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(2, 5, h, 4)), jnp.bfloat16) for h in (4, 2, 2))
    mask = jnp.asarray(random.integers(0, 2, (2, 5, 5)), bool) | jnp.eye(5, dtype=bool)[None]

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, q, k, v, mask):
        return attend(q, k, v, None, window), attend(q, k, v, mask, None)

    plain, fused = (both(a, q, k, v, mask) for a in (attention.plain, attention.fused))
    for first, second in zip(plain, fused, strict=True):
        np.testing.assert_allclose(first.astype(float), second.astype(float), atol=0.02)


def test_masters_in_float32_compute_in_bfloat16():
    params, tokens, compute = tiny(), tiny_tokens(5), ComputeOptions(dtype=jnp.bfloat16)
    found = token_logprobs(TINY, params, tokens, compute=compute)
    assert found.dtype == jnp.float32
    exact = token_logprobs(TINY, params, tokens)
    assert 0 < np.abs(found - exact).max() < 0.3
    gradient = jax.eval_shape(lambda p: jax.grad(loss)(p, tokens, None, compute), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))


# --- the tree ------------------------------------------------------------------------------


def test_stack_and_unstack_are_inverse(params):
    back = parameters.unstack(parameters.stack(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert parameters.layout_of(parameters.stack(params)) is Layers.SCAN


def test_size_counts_all_parameters(params):
    assert parameters.size(SMALL) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_compile_time_does_not_grow_with_depth():
    def lines(layers, depth):
        config = llama(23, 8, 12, depth, 2)
        shapes = parameters.abstract(config, layers=layers)
        tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        lowered = jax.jit(lambda p, t: decoder.logits(config, p, t)).lower(shapes, tokens)
        return len(lowered.as_text().splitlines())

    assert lines(Layers.SCAN, 9) < 1.1 * lines(Layers.SCAN, 3)
    assert lines(Layers.LIST, 9) > 2 * lines(Layers.LIST, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_heads": 3}, "4 query heads cannot share 3"),
        ({"windows": (None,)}, "1 entries for 2 layers"),
        ({"heads": 0}, "heads is 0"),
        ({"rope": Rope(fraction=0.5), "head_dim": 6}, "3 of 6 entries"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **change)


def test_llama3_keeps_high_frequencies_and_divides_low_ones():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 1024)
    plain, scaled = (
        rope.frequencies(llama(9, 64, 8, 1, 1, rope=Rope(10_000.0, 1.0, kind)))
        for kind in (None, scaling)
    )
    turns = 1024 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert np.all((scaled < plain) & (scaled > plain / 8) == between)
