"""Demonstrations packed side by side: the same loss and slope as padded ones, of fewer tokens."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.methods import sft
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.task import Feedback, Task
from bilevel.apps.llm.models import config, parameters, trainable
from bilevel.apps.llm.policies import model, packing

CONFIG = config.llama(30, 16, 24, 1, 4, kv_heads=2, tied=True, max_length=32)
LENGTH = 12


def rows() -> list[Row]:
    random = np.random.default_rng(0)

    def words(n):
        return random.integers(1, 30, n).tolist()

    return [Row(words(a), words(b), None) for a, b in ((3, 2), (5, 4), (1, 1), (7, 5), (2, 6))]


@pytest.fixture(scope="module")
def y():
    return jax.jit(lambda key: parameters.init(CONFIG, key, dtype=jnp.float64, deviation=0.3))(
        jax.random.key(0)
    )


POLICY = model.Decoder(CONFIG, None, trainable.FullFineTune())


def test_packed_rows_have_the_loss_and_slope_of_padded_ones(y):
    padded = model.responses(rows(), model.prompt_batch(rows(), pad_id=0), pad_id=0, length=6)
    packed = packing.packed(rows(), LENGTH)
    assert packed.per_row == len(rows()) / len(packed.responses.tokens)
    computed = packed.responses.prompts.tokens.size
    assert computed < 0.8 * model.joined(padded)[0].size

    @jax.jit
    def slope(y, shown, per_row):
        return jax.value_and_grad(sft.Likelihood(POLICY, per_row))(y, Feedback(shown))

    whole, parts = slope(y, padded, 1.0), slope(y, packed.responses, packed.per_row)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(whole[1])) > 1e-3


@pytest.mark.slow
def test_sft_divides_by_the_demonstrations_of_a_row(y):
    """Batches of one row: their losses average to that of all demonstrations."""
    shown, per_row = packing.packed(rows(), LENGTH)
    task = Task(POLICY, y, 0.1, None, shown)
    how, epoch = sft.SFT(0.0, per_row), len(shown.tokens)
    found = align(task, how, steps=epoch, batch_size=1, log_every=1, progress=False)
    seen = found.history["upper"][1:]
    whole = -eqx.filter_jit(POLICY.logprob)(y, shown).sum() / len(rows())
    np.testing.assert_allclose(np.mean(seen), whole, rtol=1e-9)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="has no prompt"):
        packing.packed([Row([], [1], None)], 4)
    with pytest.raises(ValueError, match="do not fit into rows of 4"):
        packing.packed(rows(), 4)
