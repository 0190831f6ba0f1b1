"""Hostile inputs are refused in one sentence; `tests.system.hostile` makes them."""

import gzip
import json

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.apps.llm.data import jsonl, tables
from bilevel.apps.llm.hub import config_json
from bilevel.methods import SOBA
from tests.system import hostile

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = (
    "prompt", "completion", "chosen", "rejected", "messages", "source", "role", "content",
)  # fmt: skip


@pytest.fixture
def single_precision():
    """As a user runs it: double precision takes larger numbers, and refuses fewer."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision")
def test_400_hostile_inputs_are_refused():
    wrong = {told for case in hostile.cases(400) if (told := hostile.verdict(case))}
    assert not wrong, "\n".join(sorted(wrong))


def sentence(fn, *args):
    """What a call is refused with; it may be accepted, and raises nothing else."""
    told = "accepted, that is"
    try:
        fn(*args)
    except (TypeError, ValueError) as error:
        told = str(error)
    assert 10 < len(told) < 2000


@settings(max_examples=60, deadline=None)
@given(st.floats() | st.integers() | JSON)
def test_any_step_size(value):
    sentence(SOBA, value)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON) | JSON)
def test_any_line(tmp_path_factory, row):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text(json.dumps(row))
    sentence(jsonl.demonstrations, file)
    sentence(jsonl.preferences, file)


GOOD = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "vocab_size": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*sorted(GOOD), "rope_theta", "tie_word_embeddings"]), JSON)
def test_any_config_value(key, value):
    sentence(config_json.read, {**GOOD, key: value})


def test_a_config_is_read_by_type():
    config_json.read(GOOD)
    for key, value in (("tie_word_embeddings", "no"), ("rope_theta", 0), ("vocab_size", True)):
        with pytest.raises(ValueError, match=key):
            config_json.read({**GOOD, key: value})
    with pytest.raises(ValueError, match="from 1 to 10000"):
        config_json.read({**GOOD, "num_hidden_layers": 10**9})


def test_a_gzip_bomb_and_a_long_line_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_BYTES", 1000)
    monkeypatch.setattr(tables, "MOST_OF_A_LINE", 100)
    bomb, line = tmp_path / "bomb.jsonl.gz", tmp_path / "line.jsonl"
    bomb.write_bytes(gzip.compress(b" " * 10**6))
    line.write_bytes(b" " * 200)
    with pytest.raises(ValueError, match="more than"):
        jsonl.demonstrations(bomb)
    with pytest.raises(ValueError, match=r"line 1.*long"):
        jsonl.demonstrations(line)
