"""Several responses to a prompt in one row: what they are worth alone, of fewer tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.methods import direct
from bilevel.apps.llm.methods.task import Feedback
from bilevel.apps.llm.models import config, parameters, trainable
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Preferences, Responses, log_ratio, log_ratios, referred

CONFIG = config.llama(30, 16, 24, 2, 4, kv_heads=2, tied=True, max_length=32)
NEAR = replace(CONFIG, windows=(3, None))  # a response reads its prompt through a window
PROMPTS, TIMES = (4, 1, 3), ((2, 5, 1), (3, 1, 3))  # tokens of each row


def ragged(lengths, width: int, seed: int, left: bool = False):
    tokens = np.random.default_rng(seed).integers(1, 30, (len(lengths), width), dtype=np.int32)
    mask = np.arange(width) < np.array(lengths)[:, None]
    return jnp.asarray(tokens), jnp.asarray(mask[:, ::-1] if left else mask)


def pairs() -> Preferences:
    asked = model.PromptBatch(*ragged(PROMPTS, 5, 0, left=True))
    widths = (5, 3)
    sides = (ragged(TIMES[i], width, i + 1) for i, width in enumerate(widths))
    return Preferences(*(Responses(asked, *side) for side in sides))


@pytest.mark.slow(unless=lambda layers: layers is config.Layers.LIST)
@pytest.mark.parametrize(
    ("shape", "layers"),
    [(CONFIG, config.Layers.LIST), (NEAR, config.Layers.SCAN)],
    ids=["list", "windows, stacked"],
)
def test_log_probabilities_and_slopes_are_those_of_each_alone(shape, layers):
    policy = model.Decoder(shape, None, trainable.FullFineTune())
    y = parameters.init(shape, jax.random.key(0), layers=layers, dtype=jnp.float64, deviation=0.3)

    def together(y):
        return jnp.stack(policy.logprobs(y, pairs()))

    def alone(y):
        return jnp.stack([policy.logprob(y, side) for side in pairs()])

    def slope(fn):
        weights = jnp.asarray([[1.0, -2.0, 0.5], [3.0, 0.7, -1.0]])

        def loss(y):
            found = fn(y)
            return (found * weights).sum(), found

        return jax.jit(jax.grad(loss, has_aux=True))(y)

    (da, a), (db, b) = slope(together), slope(alone)
    np.testing.assert_allclose(a, b, rtol=1e-9)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-7, atol=1e-9), da, db)


def test_a_prompt_is_computed_once():
    tokens, positions, seen = model.beside(pairs().chosen.prompts, pairs())
    assert tokens.shape == (3, 5 + 5 + 3)
    # The first tokens of both responses stand in the same place; neither sees the other.
    np.testing.assert_array_equal(positions[:, 5], PROMPTS)
    np.testing.assert_array_equal(positions[:, 10], PROMPTS)
    assert not seen[:, 10:, 5:10].any()
    assert not seen[:, 5:10, 10:].any()


@pytest.mark.slow
def test_losses_of_pairs_are_those_of_the_ratios():
    policy = model.Decoder(CONFIG, None, trainable.FullFineTune())
    y, other = (
        parameters.init(CONFIG, jax.random.key(i), dtype=jnp.float64, deviation=0.3) for i in (0, 1)
    )
    both = Preferences(*(referred(policy, other, side) for side in pairs()))
    chosen, rejected = (log_ratio(policy, y, side) for side in both)
    together = log_ratios(policy, y, both)
    np.testing.assert_allclose(jnp.stack(together), jnp.stack([chosen, rejected]), rtol=1e-9)
    feedback = Feedback(preferences=both)
    loss = direct.Direct(policy, jnp.asarray(0.5), jnp.asarray(0.0))(y, feedback)
    np.testing.assert_allclose(loss, jnp.log1p(jnp.exp(-0.5 * (chosen - rejected))).mean())
    a, b = (
        ratio / jnp.asarray(n, float) for ratio, n in zip((chosen, rejected), TIMES, strict=True)
    )
    loss = direct._Identity(policy, jnp.asarray(0.5), True)(y, feedback)
    np.testing.assert_allclose(loss, ((a - b - 1) ** 2).mean())
