"""Adapters: attached, merged, and as PEFT keeps them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint, peft
from bilevel.apps.llm.models import decoder, lora, parameters
from bilevel.apps.llm.models.config import Layers, llama

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

MODEL = llama(13, 8, 12, 2, 4, kv_heads=2)
TOKENS = jnp.asarray([[1, 2, 3, 4, 5]])
hidden = jax.jit(decoder.hidden, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return parameters.init(MODEL, jax.random.key(0), deviation=0.4)


def filled(config=MODEL, **settings):
    """Adapters whose second factor is not zero."""
    found = lora.init(config, jax.random.key(1), **settings)
    return jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)
        ),
        found,
    )


def test_new_adapters_change_nothing(params):
    fresh = lora.init(MODEL, jax.random.key(1), rank=3, targets=lora.TARGETS)
    plain, attached = (hidden(MODEL, p, TOKENS) for p in (params, lora.attach(params, fresh)))
    np.testing.assert_array_equal(plain, attached)


def test_merged_is_attached(params):
    adapters = filled(rank=3, targets=lora.TARGETS)
    attached = hidden(MODEL, lora.attach(params, adapters, scale=2.0), TOKENS)
    merged = hidden(MODEL, lora.merge(params, adapters, scale=2.0), TOKENS)
    np.testing.assert_allclose(attached, merged, atol=1e-4)
    assert np.abs(attached - hidden(MODEL, params, TOKENS)).max() > 0.05


def test_adapters_of_either_layout_fit_either_parameters(params):
    adapters = filled(rank=2)
    stacked = filled(rank=2, layers=Layers.SCAN)
    assert stacked["layers"]["query"]["a"].shape == (2, 8, 2)
    first = lora.merge(params, adapters)
    second = lora.merge(parameters.stack(params), adapters)
    jax.tree.map(np.testing.assert_array_equal, parameters.unstack(second), first)


def test_only_adapters_are_differentiated(params):
    adapters = filled(rank=2, targets=("output",))

    def loss(adapters):
        return decoder.hidden(MODEL, lora.attach(params, adapters), TOKENS).sum()

    gradient = jax.jit(jax.grad(loss))(adapters)
    assert jax.tree.structure(gradient) == jax.tree.structure(adapters)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ValueError, match="rank is 0"):
        lora.init(MODEL, jax.random.key(0), rank=0)
    with pytest.raises(ValueError, match=r"some of .*'gate'.* are needed"):
        lora.init(MODEL, jax.random.key(0), targets=("q_proj",))


# --- PEFT ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", Layers)
def test_a_peft_folder_comes_back(layers, tmp_path):
    adapters = filled(rank=3, targets=("query", "down"), layers=layers)
    peft.save_peft(adapters, MODEL, tmp_path / "out", scale=0.5)
    again, scale = peft.load_peft(tmp_path / "out", MODEL, layers=layers)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    assert scale == 0.5


@pytest.fixture
def folder(tmp_path):
    peft.save_peft(filled(rank=2), MODEL, tmp_path / "out", scale=1.0)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only plain LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 3}, r"shapes \(8, 2\) and \(2, 8\); \(8, 3\)"),
        ({"lora_alpha": None}, "lora_alpha None; a number"),
        ({"lora_alpha": True}, "lora_alpha True; a number"),
        ({"r": 2.0}, "r 2.0; a whole number"),
        ({"use_rslora": "yes"}, "use_rslora 'yes'; true or false"),
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4'; .*known: True, False, 'gauss"),
        ({"init_lora_weights": 1}, "init_lora_weights 1; only plain LoRA"),
        ({"use_something_new": {"rate": 1}}, r"use_something_new {'rate': 1}; .*not known here"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_other_adapters_are_refused(settings, words, folder):
    file = folder / peft.SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match=words):
        peft.load_peft(folder, MODEL)


def test_a_wrong_folder_is_refused(folder):
    with pytest.raises(ValueError, match="no place"):
        peft.load_peft(folder, llama(13, 8, 12, 1, 4, kv_heads=2))
    with pytest.raises(FileExistsError):
        peft.save_peft(filled(), MODEL, folder, scale=1.0)
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        peft.load_peft(folder, MODEL)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=peft.WEIGHTS):
        peft.load_peft(folder, MODEL)


def test_a_fused_kernel_is_not_written_as_three(tmp_path):
    from bilevel.apps.llm.hub import config_json

    config = config_json.read(llm_cases.CASES["neox-v4"])
    with pytest.raises(ValueError, match=r"\['query', 'value'\] of a gpt_neox model"):
        peft.save_peft(lora.init(config, jax.random.key(0)), config, tmp_path / "x", scale=1.0)


GOLDENS = json.loads((pathlib.Path(__file__).parents[1] / "data/peft_goldens.json").read_text())


def peft_folder(settings, name, path):
    """As PEFT writes it."""
    path.mkdir()
    (path / peft.SETTINGS).write_text(json.dumps(settings))
    save_file(llm_cases.adapter_weights(name), path / peft.WEIGHTS)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return checkpoint.load(llm_cases.write_folder("llama-v4", tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("name", llm_cases.ADAPTERS)
def test_adapters_of_peft_give_its_logits_and_are_written_as_by_peft(name, base, tmp_path):
    theirs = peft_folder(GOLDENS[name]["settings"], name, tmp_path / "theirs")
    adapters, scale = peft.load_peft(theirs, base.config)
    params = lora.merge(base.params, adapters, scale=scale)
    tokens = jnp.asarray(llm_cases.rows()[0][:1, :5])
    found = decoder.logits(base.config, params, tokens)
    np.testing.assert_allclose(found, GOLDENS[name]["logits"], atol=1e-4)
    stacked = lora.merge(parameters.stack(base.params), adapters, scale=scale)
    jax.tree.map(np.testing.assert_array_equal, parameters.unstack(stacked), params)
    peft.save_peft(adapters, base.config, tmp_path / "ours", scale=scale)
    written = load_file(tmp_path / "ours" / peft.WEIGHTS)
    expected = llm_cases.adapter_weights(name)
    assert written.keys() == expected.keys()
    for tensor, array in expected.items():
        np.testing.assert_array_equal(written[tensor], array)
    settings = json.loads((tmp_path / "ours" / peft.SETTINGS).read_text())
    told = GOLDENS[name]["settings"]
    for key in ("peft_type", "r", "layers_to_transform", "bias", "fan_in_fan_out", "task_type"):
        assert settings[key] == told[key]
    assert sorted(settings["target_modules"]) == told["target_modules"]
    assert settings["lora_alpha"] == pytest.approx(scale * llm_cases.RANK)


@pytest.mark.parametrize("name", GOLDENS["others"])
def test_other_adapters_that_peft_writes_are_refused(name, base, tmp_path):
    theirs = peft_folder(GOLDENS["others"][name], "last", tmp_path / "theirs")
    key = {
        "PiSSA": "init_lora_weights 'pissa'",
        "OLoRA": "init_lora_weights 'olora'",
        "DoRA": "use_dora True",
        "ranks": "rank_pattern",
        "alphas": "alpha_pattern",
        "saved": "modules_to_save",
        "bias": "lora_bias True",
    }[name]
    with pytest.raises(ValueError, match=f"has {key}.*; only plain LoRA .* Merge the adapter"):
        peft.load_peft(theirs, base.config)


def test_layers_in_the_middle_and_several_ranks_are_refused(base, tmp_path):
    theirs = peft_folder(GOLDENS["last"]["settings"], "last", tmp_path / "theirs")
    tensors = load_file(theirs / peft.WEIGHTS)
    first = {name.replace("layers.1", "layers.0"): array for name, array in tensors.items()}
    save_file(first, theirs / peft.WEIGHTS)
    with pytest.raises(ValueError, match=r"adapts the layers \[0\] of 2; all layers or the last"):
        peft.load_peft(theirs, base.config)
    mixed = lora.init(base.config, jax.random.key(0), rank=2)
    mixed["layers"][0] = lora.init(base.config, jax.random.key(0), rank=3)["layers"][0]
    with pytest.raises(ValueError, match=r"ranks \[2, 3\]; one rank for all is needed"):
        peft.save_peft(mixed, base.config, tmp_path / "ours", scale=1.0)
    deep = {"layers": [*mixed["layers"], *mixed["layers"]]}
    with pytest.raises(ValueError, match="4 layers are to be adapted; the model has 2"):
        peft.save_peft(deep, base.config, tmp_path / "ours", scale=1.0)
    tensors = {name: array * 1e6 for name, array in tensors.items()}
    save_file(tensors, theirs / peft.WEIGHTS)
    with pytest.raises(ValueError, match="largest number of float16"):
        peft.load_peft(theirs, base.config, dtype=jnp.float16)


@pytest.mark.slow
@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("name", ["llama-v4", "qwen3-v5", "neox-v4"])
def test_peft_reads_and_writes_the_same_model(name, below, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = llm_cases.write_folder(name, tmp_path / "base")
    loaded = checkpoint.load(base)
    targets = ("output", "down") if name == "neox-v4" else lora.TARGETS
    adapters = filled(loaded.config, rank=3, targets=targets)
    adapters = {"layers": adapters["layers"][below:]}
    peft.save_peft(adapters, loaded.config, tmp_path / "out", scale=0.5, base=str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = theirs.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    tokens = jnp.asarray(llm_cases.rows()[0])
    ours = lora.attach(loaded.params, adapters, scale=0.5)
    expected = decoder.logits(loaded.config, ours, tokens)
    with torch.no_grad():
        found = model(input_ids=torch.tensor(np.asarray(tokens))).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    model.save_pretrained(tmp_path / "theirs")
    again, scale = peft.load_peft(tmp_path / "theirs", loaded.config)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    assert scale == 0.5
