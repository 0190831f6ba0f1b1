"""The adapted layers alone, of which the benchmark of unlearning trains an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.unlearning import smol
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.model import Decoder

CONFIG = config.llama(20, 16, 32, 3, 2, tied=True, max_length=64)
ROWS = [Row([3, 4, 5], [6, 7, 0], None), Row([8], [9, 10, 11, 12, 0], None), Row([3, 9], [0], None)]


@pytest.mark.slow
def test_known_states_below_the_adapter_change_nothing():
    params = parameters.unstack(parameters.init(CONFIG, jax.random.key(0), deviation=0.3))
    whole = Decoder(CONFIG, params, smol.ADAPTER, Drawing(new=4, stop=(0,)))
    start = smol.ADAPTER.init(CONFIG, jax.random.key(1))
    y = jax.tree.map(lambda leaf: leaf + 0.1, start)
    states, upper = smol.States(whole), smol.Upper(whole)
    known = states.arrays(ROWS, prompt=4, response=6)
    padded = model.responses(ROWS, model.prompt_batch(ROWS, pad_id=0, length=4), pad_id=0, length=6)

    right = whole.token_logprobs(y, padded)
    np.testing.assert_allclose(upper.token_logprobs(y, known), right, rtol=1e-5, atol=1e-5)
    beside = upper.token_logprobs(y, states.packed(ROWS).responses)
    assert beside.shape[0] == 1  # the rows are side by side
    np.testing.assert_allclose(beside.sum(), right.sum(), rtol=1e-5, atol=1e-5)

    below = smol.ADAPTER.below(CONFIG)
    right = jnp.where(padded.mask[..., None], whole.token_states(y, padded, below + 1), 0)
    found = jnp.where(known.mask[..., None], upper.token_states(y, known, 1), 0)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)

    drawn = upper.sample(y, known.prompts, jax.random.key(0), temperature=0.0)
    right = whole.sample(y, padded.prompts, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(drawn.tokens, right.tokens)
