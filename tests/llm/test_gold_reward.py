"""The benchmark of generated text: its gold rewards, its text, its choice of settings."""

import gzip
import json

import jax
import numpy as np
import pytest
from test_llm_tokenizer import write as write_tokenizer

from benchmarks.gold_reward import gold, show, smollm2, text
from benchmarks.gold_reward.runs import best
from benchmarks.gold_reward.settings import KL, PAIRS, Point
from benchmarks.gold_reward.ways import RANGES, Setting, trials
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.trainable import Adapter


def test_six_different_words_are_the_best_length():
    said = ["a b c d e .", "a b c d e", "a b c d e f g h", "a b a d e .", "a"]
    np.testing.assert_allclose(gold.length(said), [1, 5 / 6, 4 / 6, 5 / 6, 1 / 6])


def test_stretches_have_only_frequent_words_and_end_with_the_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "VOCABULARY", 9)
    play = "Romeo:\n" + "I do love thee so, my dear!\n" * 7 + "I do love thee rarely, my dear!\n"
    file = tmp_path / "play.gz"
    file.write_bytes(gzip.compress(play.encode()))
    found = text.read(file)
    assert sorted(found.words) == sorted(
        [*text.ENDS, *["i", "do", "love", "thee", "so", ",", "my", "dear"]]
    )
    said = [
        f"{prompt} | {response}"
        for prompt, response in zip(
            text.said(found, found.prompts),
            text.said(found, found.responses, found.mask),
            strict=True,
        )
    ]
    first, second = "i do love | thee so, my dear!", ", my dear | !"
    assert said == [first, second] * 7 + [second]


def test_the_best_setting_is_one_near_the_model():
    near, far = Setting(1e-3, 0.1, 1.0, 1e-3), Setting(2e-3, 0.1, 1.0, 1e-3)

    def points(*reached):
        return [Point(i, 1.0, reward, kl, 0.5, None) for i, (reward, kl) in enumerate(reached)]

    tried = [
        (near, points((0.1, 1.0), (0.3, 2.0), (0.2, 3.0))),
        (far, points((0.2, 3.0), (0.9, KL + 1))),
    ]
    assert best(tried) == (near, 2)


def test_trials_cover_the_range_of_every_setting():
    for values, (low, high) in zip(zip(*trials(number=4), strict=True), RANGES, strict=True):
        shares = np.log(np.sort(values) / low) / np.log(high / low)
        np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=5e-3)


def test_the_kept_runs_are_complete():
    for name in show.golds():
        kept = show.Kept(name)
        assert all(kept.runs(way, PAIRS) for way in ("SFT", "IRL", "AIHF", "DPO"))
        assert kept.facts["base"] < kept.last("IRL", "gold").mean < kept.facts["expert"]


def test_one_seed_has_no_standard_error():
    assert f"{show.mean([0.5]):.2f}" == "0.50"
    assert f"{show.mean([0.0, 1.0]):.2f}" == "0.50 ± 0.50"


@pytest.mark.slow
def test_another_model_is_measured_in_the_same_way_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("vaderSentiment")
    folder, file, told = tmp_path / "model", tmp_path / "found.json", []
    small = config.llama(300, 16, 32, 2, 2, tied=True, max_length=64)
    made = checkpoint.new(small, parameters.init(small, jax.random.key(0), deviation=0.2))
    checkpoint.save(made, folder)
    write_tokenizer(folder)
    monkeypatch.setattr(smollm2, "ADAPTER", Adapter(rank=2, layers=1))
    monkeypatch.setattr(smollm2, "SMOL_SEEDS", (1,))
    monkeypatch.setattr(smollm2, "SIZES", smollm2.SIZES._replace(tries=2, batch=4, prompts=2))
    smollm2.everything(folder, told.append, file)
    kept = json.loads(file.read_text())
    assert [row["way"] for row in kept["rows"]] == ["SFT", "IRL", "DPO", "AIHF"]
    assert [row["points"][-1][0] for row in kept["rows"]] == [40, 50, 40, 50]
    assert "| IRL | 1 |" in show.smollm2(file)
    before, _ = len(told), smollm2.everything(folder, told.append, file)
    assert len(told) == before  # nothing is run again
