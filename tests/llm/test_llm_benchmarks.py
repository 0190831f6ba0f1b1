"""The programs that time language models: what they count and read, not how long it takes."""

import gzip
import io
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, llm_jax, llm_steps, turns
from bilevel.apps.llm.data import encode
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import config, decoder, parameters, transformer

# Large enough that what is no matrix product counts for little.
CONFIG = config.llama(512, 128, 256, 2, 4, kv_heads=2, tied=True)


def counted(fn, *args) -> float:
    """FLOPs as XLA counts them."""
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.slow(unless=lambda tied: not tied)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_xla_counts(tied):
    model = config.llama(512, 128, 256, 2, 4, kv_heads=2, tied=tied)
    params = parameters.init(model, jax.random.key(0))
    tokens = jnp.ones((3, 64), jnp.int32)

    def spoken(params, tokens):
        x = decoder.hidden(model, params, tokens)[:, -16:]
        return (transformer.read_out(params, x) ** 2).sum()

    found = counted(spoken, params, tokens)
    assert 0.85 * found < gpu.forward(model, 3, 64, 16) < found
    if tied:
        found = counted(jax.grad(spoken), params, tokens)
        assert 0.85 * found < gpu.of_sft(model, 3, 64, 16) < found


def test_flops_of_a_round():
    plan = gpu.Plan(prompt=6, answer=4, batch=3, samples=2)
    spoken, judged = (gpu.forward(CONFIG, 1, 10, reads) for reads in (4, 0))
    irl, aihf = (gpu.of_round(CONFIG, plan, prefs) for prefs in (False, True))
    # 6 rows of the policy: drawn, old, reference, derivative (3), reward; 3 of the demonstrations.
    assert irl == pytest.approx(6 * (6 * spoken + judged) + 3 * (2 * spoken + 4 * judged))
    assert aihf - irl == pytest.approx(3 * 4 * judged)


def test_peaks_by_the_name_of_the_device():
    assert gpu.peak("NVIDIA H200") == gpu.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu.peak("NVIDIA H100 PCIe") == 756e12
    assert gpu.peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu.peak("cpu") is None


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence(capsys):
    assert gpu.main([]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.strip() == (
        "JAX finds no GPU on this machine: give --small for a short run on the CPU."
    )


def test_the_data_are_found_or_asked_for(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Give --data"):
        gpu.data_folder(tmp_path)
    for name in ("gsm8k", "hh"):
        (tmp_path / "checkout" / "shared" / "data" / name).mkdir(parents=True)
    inside = tmp_path / "checkout" / "shared" / "data"
    assert gpu.data_folder(gpu.parsed(["--data", str(inside)]).data) == inside
    assert gpu.parsed([]).data is None
    assert not gpu.parsed([]).small
    # The folder `shared` lies in the checkout, or beside it.
    for root in (tmp_path / "checkout", tmp_path / "checkout" / "other"):
        monkeypatch.setattr(gpu, "ROOT", root)
        assert gpu.data_folder(None).resolve() == inside


def test_data_are_read_as_sequences(tmp_path):
    math, talk = tmp_path / "train.jsonl", tmp_path / "test.jsonl.gz"
    math.write_text(json.dumps({"question": "One and one?", "answer": "2"}) + "\n")
    (one,) = gpu.solutions(math)
    assert (one.prompt, one.response) == ("One and one?\n", "2")
    before = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?"
    lines = [
        {"chosen": f"{before}\n\nAssistant: So.", "rejected": f"{before}\n\nAssistant: No."},
        {"chosen": f"{before}\n\nAssistant: So.", "rejected": "\n\nHuman: Ho\n\nAssistant: No."},
        {"chosen": f"{before}\n\nAssistant: So.", "rejected": f"{before}\n\nAssistant:"},
    ]
    talk.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    (pair,) = gpu.dialogues(talk)
    assert pair.prompt == f"{before}\n\nAssistant:"
    assert (pair.chosen, pair.rejected) == (" So.", " No.")


def test_long_sequences_are_left_out():
    plan = gpu.Plan(prompt=2, answer=1)
    short, long = encode.Row([1, 2], [3], None), encode.Row([1], [2, 3], None)
    assert gpu.fitting([long, short, short], plan, 2) == [short, short]
    assert gpu.fitting([encode.RowPair(short, long), encode.RowPair(short, short)], plan, 1) == [
        encode.RowPair(short, short)
    ]
    with pytest.raises(ValueError, match="1 of 2 sequences"):
        gpu.fitting([long, short], plan, 2)


@pytest.mark.slow
def test_the_first_layers_alone():
    params = parameters.init(CONFIG, jax.random.key(0), layers=config.Layers.SCAN)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    one = gpu.first(checkpoint.new(CONFIG, params), 1)
    tokens = jnp.ones((1, 3), jnp.int32)
    alone = parameters.unstack(params)
    expected = decoder.logits(one.config, {**alone, "layers": alone["layers"][:1]}, tokens)
    np.testing.assert_allclose(decoder.logits(one.config, one.params, tokens), expected, rtol=1e-5)


# --- against PyTorch -----------------------------------------------------------------------------


def test_a_side_answers_with_seconds_and_value(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\none\n"))
    turns.serve({"one": lambda: 1.0, "two": lambda: sum(range(10**6))}, write)
    with os.fdopen(read) as answers:
        ready, *told = answers.read().splitlines()
    assert ready == ""
    (seconds, two), (_, one) = map(json.loads, told)
    assert (one, two) == (1.0, 499999500000)
    assert seconds > 0


def test_calls_alternate_and_the_first_is_not_counted():
    order = []

    class Side:
        def ask(self, case):
            order.append(case)
            return float(len(order)), None

    side = Side()
    times = llm_steps.taken({"A": (side, "a"), "B": (side, "b")}, 2, lambda line: None)
    assert "".join(order) == "baabba"
    assert times == {"A": [3.0, 6.0], "B": [4.0, 5.0]}


def test_a_row_shows_tokens_a_second_and_the_ratio_of_times():
    shapes = llm_steps.Shapes(llm_steps.SIZES["124 M"], rows=2, prompt=3, answer=5)
    times = {"ours": [2.0, 2.0], "trl": [4.0, 4.0]}
    row = llm_steps.against("124 M", "DPO", shapes, times, "trl", 1e-6)
    assert (row.ours, row.reference, row.ratio) == (8.0, 4.0, 0.5)
    assert not row.missed
    assert llm_steps.against("124 M", "DPO", shapes, times | {"ours": [3.0, 3.0]}, "trl", 0).missed


@pytest.mark.parametrize("size", ["20 M", "124 M"])
def test_models_are_of_the_size_they_are_named_by(size):
    found = parameters.size(config.llama(**llm_steps.SIZES[size], tied=True))
    assert found == pytest.approx(float(size.split()[0]) * 1e6, rel=0.02)


@pytest.mark.slow
def test_losses_of_our_side(tmp_path: Path):
    sizes = {"vocab_size": 30, "width": 8, "inner": 12, "layers": 1, "heads": 2}
    shapes = llm_steps.Shapes(sizes, rows=2, prompt=3, answer=2)
    ours = llm_jax.Ours(tmp_path, shapes)
    models = [checkpoint.load(tmp_path / name) for name in llm_steps.FILES]

    def said(model, name):
        tokens = jnp.concatenate(llm_steps.drawn(shapes)[name], axis=1)
        return decoder.token_logprobs(model.config, model.params, tokens)[:, 3:].sum(axis=1)

    assert ours.loss("SFT") == pytest.approx(float(-said(models[0], "SFT").mean() / 2), rel=1e-4)
    better, worse = (said(models[0], s) - said(models[1], s) for s in ("chosen", "rejected"))
    expected = jnp.log1p(jnp.exp(-llm_steps.BETA * (better - worse))).mean()
    assert ours.loss("DPO") == pytest.approx(float(expected), rel=1e-4)
