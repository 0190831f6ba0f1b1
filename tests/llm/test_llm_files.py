"""What a checkpoint folder says: values by their type, files inside of it, numbers within range."""

import json
import os
import shutil

import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint, config_json, tensor_files
from bilevel.apps.llm.models.config import Config

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file


@pytest.fixture
def folder(tmp_path):
    return llm_cases.write_folder("llama-v4", tmp_path / "model")


@pytest.fixture
def sharded(folder, tmp_path):
    """A folder of several files of weights."""
    checkpoint.save(read(folder), tmp_path / "sharded", shard_bytes=6000)
    return tmp_path / "sharded"


def read(folder, **settings):
    """In NumPy: no program is compiled."""
    return checkpoint.load(folder, place=lambda path, array: array, **settings)


# --- config.json -----------------------------------------------------------------------------

LLAMA3 = llm_cases.CASES["llama-v4-llama3"]["rope_scaling"]
WRONG = [
    ("llama-v4", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'; true or false is"),
    ("llama-v4", {"attention_bias": 1}, "attention_bias 1; true or false"),
    ("llama-v4", {"mlp_bias": "false"}, "mlp_bias 'false'; true or false"),
    ("neox-v4", {"use_parallel_residual": "no"}, "use_parallel_residual 'no'; true or"),
    ("qwen2-windows", {"use_sliding_window": "no"}, "use_sliding_window 'no'; true or"),
    ("llama-v4", {"rope_theta": 0}, "rope_theta 0; a number above 0, at most 3e38, is needed"),
    ("llama-v4", {"rope_theta": -1e4}, "rope_theta -10000.0; a number above 0"),
    ("llama-v4", {"rope_theta": 10**400}, r"rope_theta 10{20,}\.\.\.; a number above 0"),
    ("llama-v4", {"rope_theta": float("nan")}, "rope_theta nan; a number"),
    ("llama-v5", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta '1e4'; a number"),
    ("llama-v4", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor 0; a number above"),
    ("llama-v4", {"rope_scaling": {"type": ["linear"]}}, r"type \['linear'\]; a text is needed"),
    ("llama-v4", {"rope_scaling": "linear"}, "rope_scaling 'linear'; an object is needed"),
    (
        "llama-v4",
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        r"high_freq_factor 1.0; more than low_freq_factor \(1.0\) is",
    ),
    ("neox-v4", {"rotary_pct": True}, "rotary_pct True; a number above 0"),
    ("llama-v4", {"rms_norm_eps": float("inf")}, "rms_norm_eps inf; a number above 0"),
    ("llama-v4", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000; .* to 10000 is"),
    ("llama-v4", {"num_hidden_layers": True}, "num_hidden_layers True; a whole number"),
    ("llama-v4", {"hidden_size": 10**400}, r"hidden_size 10+\.\.\.; a whole number"),
    ("llama-v4", {"num_key_value_heads": 0}, "num_key_value_heads 0; a whole number"),
    ("llama-v4", {"num_key_value_heads": 2.0}, "num_key_value_heads 2.0; a whole number"),
    ("llama-gelu", {"head_dim": "6"}, "head_dim '6'; a whole number"),
    (
        "mistral-window",
        {"sliding_window": -4},
        "sliding_window -4; a whole number from 1 ",
    ),
    ("qwen2-windows", {"max_window_layers": -1}, "max_window_layers -1; a whole number from 0 to "),
    ("qwen2-v5", {"layer_types": "full_attention"}, "layer_types 'full_attention'; 2 of"),
    ("qwen2-v5", {"layer_types": [{}, {}]}, r"layer_types \[{}, {}\]; 2 of"),
    ("llama-v4", {"hidden_act": {}}, "hidden_act {}; a text is needed"),
    ("llama-v4", {"model_type": ["llama"]}, r"model_type \['llama'\], which is not known"),
]


@pytest.mark.parametrize(("name", "changes", "words"), WRONG)
def test_a_value_of_another_kind_is_refused(name, changes, words):
    with pytest.raises(ValueError, match=words):
        config_json.read(llm_cases.CASES[name] | changes)


STRANGE = [None, True, "no", "", 0, -1, 0.5, 1e400, 10**400, [], ["a"], {}, {"a": [1]}]


@pytest.mark.parametrize("name", llm_cases.CASES)
def test_any_value_is_read_or_refused(name):
    """Nothing but a configuration or a sentence comes out."""
    about = llm_cases.CASES[name]
    inner = [("rope_parameters", key) for key in about.get("rope_parameters", ())]
    inner += [("rope_scaling", key) for key in about.get("rope_scaling", ())]
    for at in [*((key,) for key in about), *inner]:
        for value in STRANGE:
            changed = {at[0]: value if len(at) == 1 else about[at[0]] | {at[1]: value}}
            found = config_or_words(about | changed)
            assert isinstance(found, Config) or len(found) < 400


def config_or_words(about) -> Config | str:
    try:
        return config_json.read(about)
    except ValueError as error:
        return str(error)


def test_json_that_is_too_deep_or_too_long_is_refused(folder):
    for content, words in (
        ("[" * 100_000, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
    ):
        content = content if isinstance(content, bytes) else content.encode()
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read(folder)


# --- which files -----------------------------------------------------------------------------


def test_a_single_file_goes_before_an_index(folder, sharded):
    """As in transformers: the shards of an earlier save may lie beside it."""
    file = sharded / tensor_files.SINGLE
    tensors = {name: 2 * array for name, array in load_file(folder / file.name).items()}
    save_file(tensors, file)
    found = read(sharded).params["embed"]
    np.testing.assert_array_equal(found, tensors["model.embed_tokens.weight"])
    (sharded / tensor_files.INDEX).write_text("not read")
    read(sharded)


def test_weights_under_another_name_are_refused(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(llm_cases.CASES["llama-v4"] | {"transformers_weights": "a"}))
    with pytest.raises(ValueError, match=r"in transformers_weights; rename that to model.safet"):
        read(folder)


@pytest.mark.parametrize("name", ["..", "../a", "/etc/passwd", "a/b", r"..\a", "C:a", "a\0", "", 7])
def test_an_index_names_files_of_its_folder_alone(sharded, name):
    file = sharded / tensor_files.INDEX
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the file .*; a file of its folder is needed"):
        read(sharded)


def test_a_link_out_of_the_folder_is_not_followed(sharded, tmp_path):
    shard = min(sharded.glob("*.safetensors"))
    shutil.move(shard, sharded / "moved")
    shard.symlink_to("moved")
    read(sharded)
    shutil.move(sharded / "moved", tmp_path / "moved")
    shard.unlink()
    shard.symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"is a link to .*moved, outside of the folder; copy"):
        read(sharded)


def test_a_folder_of_the_cache_of_the_hub_is_read(sharded, tmp_path):
    """Its files are links into `blobs`, beside `snapshots`."""
    blobs, home = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    home.mkdir(parents=True)
    for i, file in enumerate(sorted(sharded.iterdir())):
        shutil.move(file, blobs / str(i))
        (home / file.name).symlink_to(os.path.relpath(blobs / str(i), home))
    assert read(home).config == config_json.read(llm_cases.CASES["llama-v4"])


# --- which numbers ---------------------------------------------------------------------------


def rescaled(folder, name, value):
    tensors = load_file(folder / tensor_files.SINGLE)
    tensors[name] = tensors[name].astype(np.float64)
    tensors[name].flat[3] = value
    save_file(tensors, folder / tensor_files.SINGLE)


def test_values_beyond_the_type_asked_for_are_refused(folder, tmp_path):
    rescaled(folder, "model.norm.weight", 1e6)
    loaded = read(folder, dtype=jnp.bfloat16)
    assert loaded.params["norm"]["scale"][3] == jnp.bfloat16(1e6)
    words = r"norm.weight holds 1e\+06, and the largest number of float16 is 6.55e\+04. Ask for"
    with pytest.raises(ValueError, match=words):
        read(folder, dtype=jnp.float16)
    with pytest.raises(ValueError, match=words):
        checkpoint.save(read(folder), tmp_path / "out", dtype=jnp.float16)
    assert not (tmp_path / "out").exists()
    rescaled(folder, "model.norm.weight", np.inf)  # what is infinite stays so
    assert read(folder, dtype=jnp.float16).params["norm"]["scale"][3] == np.inf
    with pytest.raises(ValueError, match="asked for as int8; a floating type is needed"):
        read(folder, dtype=jnp.int8)


def test_double_precision_is_not_narrowed_to_infinity(folder):
    import jax

    rescaled(folder, "model.norm.weight", 1e200)
    assert read(folder).params["norm"]["scale"][3] == 1e200
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"holds 1e\+200"):
        read(folder)
