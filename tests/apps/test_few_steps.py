"""Few lower steps: each claim on its toy, and the parts by hand."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.few_steps import design, merging, nets, quantization, reasoning

FILE = Path(__file__).parents[2] / "examples" / "few_steps.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("few_steps_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounded_weights_are_multiples_and_the_slope_skips_the_rounding():
    weights = jnp.array([[0.26, -3.0], [-0.14, 0.9]])
    found = quantization.rounded(weights, jnp.log(jnp.array([0.1, 0.5])), bits=3)
    np.testing.assert_allclose(found, [[0.3, -2.0], [-0.1, 1.0]])  # −4 and 3 are the last ones
    slope = jax.grad(lambda w: quantization.rounded(w, jnp.log(jnp.ones(2) / 10), 3).sum())(weights)
    np.testing.assert_array_equal(slope, [[1, 0], [1, 0]])


def test_nearest_rounding_cuts_no_weight_off():
    net = nets.start((5, 4, 3), key=jax.random.key(0))
    rough = quantization.quantized(net, quantization.to_nearest(net, 3), 3)
    for layer, own in zip(net, rough, strict=True):
        step = np.abs(layer["weights"]).max(0) / 3.5
        assert (np.abs(layer["weights"] - own["weights"]) <= step * 0.5000001).all()


def test_merging_by_hand():
    base = {"w": jnp.array([1.0, 2.0])}
    parts = merging.merge_of(base, [{"w": jnp.array([2.0, 2.0])}, {"w": jnp.array([1.0, 6.0])}])
    plain = merging.merged(parts, jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(plain["w"], [1.5, 3.0])
    masked = merging.merged(parts, jnp.array([0.5, 0.25]), {"w": jnp.array([0.0, 1.0])})
    np.testing.assert_allclose(masked["w"], [1.0, 4.0])  # divided by the mean of the mask


def test_a_sequence_has_its_letters_and_pairs_as_features():
    known = design.known(jnp.array([[0, 1, 1], [1, 0, 1]]), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(known.scores, [-1, 1])
    np.testing.assert_allclose(known.goal, 3)
    features = design.kmers(known.sequences)
    np.testing.assert_allclose(features @ features.T * 14, [[5, 1], [1, 5]])  # 3 letters, 2 pairs


def test_worlds_hold_what_they_should():
    seen = reasoning.worlds(jax.random.key(0), 50, distractors=2)
    assert (seen.there.sum(1) == 8).all()
    assert all(len(set(row)) == 12 for row in np.asarray(seen.causes).tolist())
    several = reasoning.worlds(jax.random.key(0), 50)
    assert set(np.asarray(several.there.sum(1)).astype(int)) == set(range(6, 13))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_design_is_above_most_sequences_and_all_that_were_known(example, seed):
    reached, known = example.sequence(seed)
    assert known <= 0.5
    assert reached > 0.75


@pytest.mark.slow
def test_calibration_is_better_than_rounding_to_nearest(example):
    found = example.rounding()
    assert found["MetaAug"] < found["raw images"] < found["to nearest"]


@pytest.mark.slow
def test_adapted_weights_answer_better_than_a_network_that_reads_the_facts(example):
    adapted, in_context = example.facts()
    assert adapted > in_context + 0.1
    assert adapted > 0.9
