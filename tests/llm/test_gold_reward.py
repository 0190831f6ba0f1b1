"""The benchmark of generated text: its gold rewards, its text, its choice of settings."""

import gzip

import numpy as np

from benchmarks.gold_reward import gold, show, text
from benchmarks.gold_reward.runs import best
from benchmarks.gold_reward.settings import KL, PAIRS, Point
from benchmarks.gold_reward.ways import RANGES, Setting, trials


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
