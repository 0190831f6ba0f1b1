"""Sampling: the cache changes nothing, and log-probabilities are those of the decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.models import decoder, parameters, sampling
from bilevel.apps.llm.models.config import llama
from bilevel.apps.llm.models.sampling import Drawing

MODEL = dataclasses.replace(llama(19, 8, 12, 2, 4, kv_heads=2), windows=(None, 3))
PROMPTS = jnp.asarray([[3, 1, 4, 1], [5, 9, 2, 6], [7, 7, 8, 0], [0, 0, 0, 0]])
MASK = jnp.asarray([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]], bool)

generate = jax.jit(sampling.generate, static_argnums=0, static_argnames=("drawing", "compute"))
generate_at = jax.jit(
    sampling.generate_at, static_argnums=0, static_argnames=("drawing", "compute")
)
token_logprobs = jax.jit(decoder.token_logprobs, static_argnums=0)
logits = jax.jit(decoder.logits, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return parameters.init(MODEL, jax.random.key(0), deviation=0.5)


def sample(params, drawing, seed=0):
    return generate(MODEL, params, PROMPTS, MASK, key=jax.random.key(seed), drawing=drawing)


@pytest.fixture(scope="module")
def plain(params):
    return sample(params, Drawing(new=6))


def test_logprobs_are_those_of_the_decoder(params, plain):
    """Whole, and padded before, behind and around: KV cache against full recomputation."""
    found = token_logprobs(MODEL, params, plain.tokens, plain.mask)
    np.testing.assert_allclose(plain.logprobs, jnp.where(plain.response, found, 0), atol=1e-5)
    np.testing.assert_allclose(plain.drawn, plain.logprobs, atol=1e-6)
    assert np.all(np.asarray(plain.logprobs)[plain.response] < -1e-3)


def test_responses_follow_prompts(plain):
    np.testing.assert_array_equal(plain.response[:, :4], False)
    np.testing.assert_array_equal(plain.response[:, 4:], True)
    np.testing.assert_array_equal(plain.mask[:, :4], MASK)
    np.testing.assert_array_equal(plain.tokens[:, :4], jnp.where(MASK, PROMPTS, 0))


def test_stacked_layers_give_the_same(params, plain):
    stacked = sample(parameters.stack(params), Drawing(new=6))
    np.testing.assert_array_equal(stacked.tokens, plain.tokens)


def test_temperature_zero_takes_the_likeliest(params):
    """Token for token what the whole decoder finds likeliest after all tokens before."""
    out = generate_at(
        MODEL,
        params,
        PROMPTS,
        MASK,
        key=jax.random.key(0),
        temperature=jnp.float32(0),
        drawing=Drawing(new=6),
    )
    scores = logits(MODEL, params, out.tokens, out.mask)
    before, known = decoder.predecessors(scores, out.mask)
    likeliest = jnp.argmax(before, axis=-1)
    np.testing.assert_array_equal(out.tokens[out.response], likeliest[out.response])
    assert known[out.response].all()
    np.testing.assert_array_equal(out.drawn, 0)
    assert np.all(np.asarray(out.logprobs)[out.response] < 0)  # of the model, as ever


def test_a_stop_token_ends_a_response_and_belongs_to_it(params, plain):
    row, stop = 0, int(plain.tokens[0, 5])  # the second drawn token of the first row
    out = sample(params, Drawing(new=6, stop=(stop,)))
    drawn = np.asarray(plain.tokens)[:, 4:]
    for row in range(len(drawn)):
        hits = np.flatnonzero(drawn[row] == stop)
        length = hits[0] + 1 if len(hits) else 6
        expected = np.arange(6) < length
        np.testing.assert_array_equal(out.response[row, 4:], expected)
        np.testing.assert_array_equal(out.mask[row, 4:], expected)
        np.testing.assert_array_equal(out.tokens[row, 4:][:length], drawn[row, :length])
        assert np.all(np.asarray(out.tokens)[row, 4:][length:] == 0)
    found = token_logprobs(MODEL, params, out.tokens, out.mask)
    np.testing.assert_allclose(out.logprobs, jnp.where(out.response, found, 0), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_samples(params):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    out = sample(narrow, Drawing(new=6))
    found = token_logprobs(MODEL, narrow, out.tokens, out.mask)
    np.testing.assert_allclose(out.logprobs, jnp.where(out.response, found, 0), atol=0.1)


# --- drawing -------------------------------------------------------------------------------

SCORES = jnp.log(jnp.asarray([0.4, 0.3, 0.15, 0.1, 0.05], jnp.float32))


def expected(drawing):
    """The distribution, by the definitions."""
    p = np.exp(np.asarray(SCORES, float)) ** (1 / drawing.temperature)
    if drawing.top_k is not None:
        p[drawing.top_k :] = 0
    p = p / p.sum()
    if drawing.top_p is not None:
        p[np.cumsum(p) - p >= drawing.top_p] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(),
        Drawing(temperature=0.5),
        Drawing(top_k=2),
        Drawing(top_p=0.75),
        Drawing(top_p=0.1),
        Drawing(temperature=2.0, top_k=4, top_p=0.8),
    ],
)
def test_tokens_are_drawn_from_the_distribution(drawing):
    n = 20_000
    rows = jnp.broadcast_to(SCORES[None], (n, 5))
    tokens, logprobs = jax.jit(
        lambda key, rows: sampling.draw(key, rows, drawing, drawing.temperature)
    )(jax.random.key(0), rows)
    p = expected(drawing)
    shares = np.bincount(np.asarray(tokens), minlength=5) / n
    np.testing.assert_allclose(shares, p, atol=4 * np.sqrt(0.25 / n))
    assert np.all(shares[p == 0] == 0)
    np.testing.assert_allclose(logprobs, np.log(p[np.asarray(tokens)]), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"new": 0}, "new is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Drawing(**settings)
