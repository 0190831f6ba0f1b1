"""Checkpoint folders in and out: the same to the byte, and clear words for every wrong one."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint, config_json, tensor_files
from bilevel.apps.llm.hub import gguf as gguf_file
from bilevel.apps.llm.models import decoder, parameters
from bilevel.apps.llm.models.config import Layers, llama

safetensors = pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file  # noqa: E402

FAMILIES = ["llama-v4", "llama-biases", "mistral-window", "qwen2-v5", "qwen3-v5", "neox-v5"]


@pytest.fixture
def folder(tmp_path):
    return llm_cases.write_folder("llama-v4", tmp_path / "model")


def change(folder, **settings):
    """Other words in config.json; None takes one out."""
    file = folder / "config.json"
    about = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


def retensor(folder, fn):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    fn(tensors)
    save_file(tensors, file)


def tensors_of(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same_bytes(first, second):
    assert set(first) == set(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert array.shape == second[name].shape
        assert array.tobytes() == second[name].tobytes(), name


# --- out as in -----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", Layers)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_comes_back_to_the_byte(name, layers, tmp_path):
    source = llm_cases.write_folder(name, tmp_path / "in")
    checkpoint.save(checkpoint.load(source, layers=layers), tmp_path / "out")
    assert_same_bytes(tensors_of(source), tensors_of(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == llm_cases.CASES[name]


def test_bfloat16_comes_back_to_the_byte(folder, tmp_path):
    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(jnp.bfloat16)

    retensor(folder, narrow)
    loaded = checkpoint.load(folder)
    assert loaded.params["embed"].dtype == jnp.bfloat16
    checkpoint.save(loaded, tmp_path / "out")
    assert_same_bytes(tensors_of(folder), tensors_of(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    wide = checkpoint.load(folder, dtype=jnp.float32)
    assert wide.params["layers"][0]["query"]["kernel"].dtype == jnp.float32


def test_shards_come_back_to_the_byte(folder, tmp_path):
    whole = checkpoint.load(folder)
    checkpoint.save(whole, tmp_path / "shards", shard_bytes=4000)
    index = json.loads((tmp_path / "shards" / tensor_files.INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = sum(array.nbytes for array in tensors_of(folder).values())
    assert index["metadata"]["total_size"] == sizes
    again = checkpoint.load(tmp_path / "shards")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert_same_bytes(tensors_of(folder), tensors_of(tmp_path / "shards"))


def test_other_files_are_carried_along(folder, tmp_path):
    content = {"generation_config.json": b'{"eos_token_id": [2, 5]}', "merges.txt": "é".encode()}
    for name, text in content.items():
        (folder / name).write_bytes(text)
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    change(folder, auto_map={"AutoModel": "modeling_evil.Model"})
    checkpoint.save(checkpoint.load(folder), tmp_path / "out")
    for name, text in content.items():
        assert (tmp_path / "out" / name).read_bytes() == text
    assert not (tmp_path / "out" / "modeling_evil.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_every_leaf_is_placed_as_it_is_read(folder):
    placed = {}

    def place(path, array):
        placed[path] = array.shape
        return jnp.asarray(array) + 1

    found = checkpoint.load(folder, place=place)
    plain = checkpoint.load(folder)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), found.params, plain.params)
    assert placed[("layers", 1, "query", "kernel")] == (16, 16)
    placed.clear()
    checkpoint.load(folder, place=place, layers=Layers.SCAN)
    assert placed[("layers", "key", "kernel")] == (2, 16, 8)


@pytest.mark.parametrize("name", llm_cases.CASES)
def test_a_configuration_is_written_so_that_it_reads_the_same(name):
    config = config_json.read(llm_cases.CASES[name])
    assert config_json.read(config_json.write(config)) == config


def test_a_model_from_scratch_is_a_checkpoint(tmp_path):
    config = llama(11, 8, 12, 2, 2, tied=True)
    params = parameters.init(config, jax.random.key(0))
    checkpoint.save(checkpoint.new(config, params), tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_what_is_written(name, tmp_path):
    """With the words of the original config.json, and with those of our own."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from data.make_llm_goldens import logits_of

    loaded = checkpoint.load(llm_cases.write_folder(name, tmp_path / "in"))
    halved = jax.tree.map(lambda leaf: leaf * 0.5, loaded.params)
    tokens, mask = llm_cases.rows()
    expected = decoder.logits(loaded.config, halved, jnp.asarray(tokens), jnp.asarray(mask))
    ours = dataclasses.replace(loaded, params=halved)
    for i, out in enumerate((ours, checkpoint.new(loaded.config, halved))):
        checkpoint.save(out, tmp_path / f"out{i}", shard_bytes=6000)
        found = logits_of(tmp_path / f"out{i}", tokens, mask)
        np.testing.assert_allclose(expected[mask], found[mask], atol=1e-4)


# --- what is refused -----------------------------------------------------------------------


def no_folder(folder):
    shutil.rmtree(folder)


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def missing_shard(folder):
    shards = folder.parent / "shards"
    checkpoint.save(checkpoint.load(folder), shards, shard_bytes=4000)
    no_folder(folder)
    shards.rename(folder)
    (folder / sorted(path.name for path in folder.glob("*.safetensors"))[1]).unlink()


def strange_shard(folder):
    missing_shard(folder)
    index = json.loads((folder / tensor_files.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../secret.safetensors"
    (folder / tensor_files.INDEX).write_text(json.dumps(index))


def set_to(**settings):
    return lambda folder: change(folder, **settings)


def with_tensors(fn):
    return lambda folder: retensor(folder, fn)


def wide_tokenizer(folder):
    vocab = {str(i): i for i in range(llm_cases.VOCAB)}
    added = [{"id": llm_cases.VOCAB + 3, "content": "<extra>"}]
    content = {"model": {"vocab": vocab}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def strange_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": []}')


def half_head(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WRONG = {
    "no folder": (no_folder, FileNotFoundError, "is not a folder"),
    "no config": (no_config, FileNotFoundError, r"has no config.json; it has \['model.safet"),
    "config not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        ValueError,
        "config.json is not JSON",
    ),
    "no weights": (no_weights, FileNotFoundError, "neither model.safetensors nor"),
    "pickled": (pickled, ValueError, r"pickled weights \(pytorch_model.bin\).*safe_serialization"),
    "cut off": (cut_off, ValueError, "not a safetensors file, or is cut off"),
    "missing shard": (missing_shard, FileNotFoundError, "has no model-00002-of-.*shard is missing"),
    "shard elsewhere": (strange_shard, ValueError, "file '../secret.safetensors'; a file of its"),
    "no model type": (set_to(model_type=None), ValueError, "model_type None.*Known: llama"),
    "another model": (set_to(model_type="gemma2"), ValueError, "model_type 'gemma2', which is not"),
    "quantized": (set_to(quantization_config={"bits": 4}), ValueError, "quantization_config"),
    "activation": (set_to(hidden_act="xielu"), ValueError, "hidden_act 'xielu'.*Known: silu"),
    "RoPE kind": (
        set_to(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        ValueError,
        "RoPE of type 'yarn', which is not known",
    ),
    "RoPE kind of version 5": (
        set_to(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}),
        ValueError,
        "RoPE of type 'longrope'",
    ),
    "RoPE lacks a number": (
        set_to(rope_scaling={"rope_type": "llama3", "factor": 2.0}),
        ValueError,
        r"'llama3' with \['factor'\]; .*low_freq_factor",
    ),
    "part of a head": (set_to(partial_rotary_factor=0.5), ValueError, "partial_rotary_factor 0.5"),
    "no size": (set_to(hidden_size=None), ValueError, "no 'hidden_size', which a llama"),
    "size of words": (
        set_to(num_hidden_layers="two"),
        ValueError,
        "num_hidden_layers 'two'; a",
    ),
    "a tensor missing": (
        with_tensors(lambda t: t.pop("model.norm.weight")),
        ValueError,
        "lacks model.norm.weight",
    ),
    "no head": (with_tensors(lambda t: t.pop(HEAD)), ValueError, "lacks lm_head.weight.*tied?"),
    "a tensor too many": (
        with_tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(16)})),
        ValueError,
        "q_proj.bias, for which a llama model",
    ),
    "vocabulary": (set_to(vocab_size=50), ValueError, "vocabulary is 48 there and 50 here"),
    "vocabulary of the head": (
        with_tensors(half_head),
        ValueError,
        "lm_head.weight .*vocabulary is 47 there",
    ),
    "another width": (set_to(intermediate_size=25), ValueError, "_proj.weight .* asks for .*25"),
    "whole numbers": (
        with_tensors(lambda t: t.update({EMBED: t[EMBED].astype(np.int8)})),
        ValueError,
        "of type I8.*GGUF",
    ),
    "tied to another head": (
        set_to(tie_word_embeddings=True),
        ValueError,
        "differs from model",
    ),
    "tokenizer too large": (wide_tokenizer, ValueError, "tokens up to 51, but .* has 48"),
    "tokenizer of another form": (strange_tokenizer, ValueError, "tokenizer.json is not one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name, folder):
    spoil, error, words = WRONG[name]
    spoil(folder)
    with pytest.raises(error, match=words):
        checkpoint.load(folder)


def test_known_buffers_and_a_tied_head_that_agrees_are_passed_over(folder):
    def more(tensors):
        tensors[HEAD] = tensors[EMBED]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    retensor(folder, more)
    change(folder, tie_word_embeddings=True)
    assert "head" not in checkpoint.load(folder).params


def test_windows_that_are_not_told_are_refused():
    about = llm_cases.CASES["qwen2-v5"] | {"use_sliding_window": False}
    with pytest.raises(ValueError, match="no sliding_window that is in use"):
        config_json.read(about)
    with pytest.raises(ValueError, match="layer_types"):
        config_json.read(about | {"layer_types": ["chunked_attention"] * 2})


def test_what_cannot_be_written_is_refused(folder, tmp_path):
    loaded = checkpoint.load(folder)
    with pytest.raises(FileExistsError, match="not empty"):
        checkpoint.save(loaded, folder)
    wrong = dataclasses.replace(loaded, params=loaded.params | {"norm": {"scale": jnp.ones(3)}})
    with pytest.raises(ValueError, match="do not fit the configuration at norm/scale"):
        checkpoint.save(wrong, tmp_path / "out")
    config = dataclasses.replace(loaded.config, qk_norm=True)
    with pytest.raises(ValueError, match="is not a model of the family llama"):
        config_json.write(config)


# --- GGUF ----------------------------------------------------------------------------------


def neighbours(rows, heads):
    """As llama.cpp's converter turns the rows of queries and keys."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file, name="llama-v4", **changed):
    gguf = pytest.importorskip("gguf")
    about, tensors = llm_cases.CASES[name], llm_cases.weights(llm_cases.CASES[name])
    kind = changed.pop("architecture", about["model_type"])
    writer = gguf.GGUFWriter(str(file), kind)
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(about["num_attention_heads"])
    writer.add_head_count_kv(about["num_key_value_heads"])
    writer.add_rope_freq_base(about["rope_theta"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    if "head_dim" in about:
        writer.add_key_length(about["head_dim"])
    letters = [chr(ord("!") + i) for i in range(llm_cases.VOCAB - 1)] + ["<end>"]
    writer.add_tokenizer_model(changed.pop("tokenizer", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(letters)
    writer.add_token_types([1] * (llm_cases.VOCAB - 1) + [3])
    writer.add_eos_token_id(llm_cases.VOCAB - 1)
    names = {ours: theirs for theirs, ours in gguf_file.BACK.items()}
    assert not changed
    for tensor, array in tensors.items():
        if tensor.startswith("model.layers."):
            _, _, number, rest = tensor.split(".", 3)
            stem, _, last = rest.rpartition(".")
            if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
                heads = "num_attention_heads" if "q_proj" in stem else "num_key_value_heads"
                array = neighbours(array, about[heads])
            writer.add_tensor(f"blk.{number}.{names[stem]}.{last}", array)
        else:
            writer.add_tensor(names[tensor], array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", ["llama-v4", "qwen2-v4", "qwen3-v4"])
def test_gguf_holds_the_model_of_the_folder(name, tmp_path):
    folder = llm_cases.write_folder(name, tmp_path / "model")
    loaded = gguf_file.load_gguf(write_gguf(tmp_path / "model.gguf", name))
    expected = checkpoint.load(folder)
    assert loaded.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    checkpoint.save(loaded, tmp_path / "out")
    again = checkpoint.load(tmp_path / "out", layers=Layers.SCAN)
    jax.tree.map(np.testing.assert_array_equal, parameters.unstack(again.params), loaded.params)
    assert "tokenizer.json" in again.files


def test_gguf_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="architecture 'mamba', which is not known"):
        gguf_file.load_gguf(write_gguf(tmp_path / "a.gguf", architecture="mamba"))
    with pytest.raises(ValueError, match="tokenizer 'llama' with text cut"):
        gguf_file.load_gguf(write_gguf(tmp_path / "b.gguf", tokenizer="llama"))
    (tmp_path / "c.gguf").write_bytes(b"GGML" * 9)
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf_file.load_gguf(tmp_path / "c.gguf")
    with pytest.raises(FileNotFoundError):
        gguf_file.load_gguf(tmp_path / "d.gguf")
