"""The benchmark of unlearning: what is told to whom, and the file that it reads."""

import json

import numpy as np
import pytest

from benchmarks.unlearning import show, small, world


def made(file, change=lambda parts: None):
    """A file with the parts of tofu.json, in which all questions differ."""
    parts = {
        name: [{"question": f"{name} {i}?", "answer": f"It is {i}."} for i in range(count)]
        for name, count in world.PARTS.items()
    }
    for name in ("forget01", "forget05"):
        parts[name] = parts["forget10"][-world.PARTS[name] :]
    change(parts)
    file.write_text(json.dumps(parts))
    return file


def test_what_is_unseen_is_told_to_no_model_and_what_is_forgotten_to_one(tmp_path):
    pytest.importorskip("tokenizers")
    pairs = world.read(made(tmp_path / "tofu.json"))
    text = small.Text(pairs)
    assert text.decode(text.rows([("a?", "It is 7.")])[0].response[:-1]) == "It is 7."
    told = []
    for name, found in world.worlds(pairs, text).items():
        some = {kind: {tuple(row.prompt) for row in rows} for kind, rows in found._asdict().items()}
        assert len(some["forget"]) == world.PARTS[name]
        assert not some["forget"] & {tuple(row.prompt) for row in found.retained()}
        told.append({tuple(row.prompt) for row in found.told()})
        assert not some["unseen"] & told[-1]
    assert told[0] == told[1]
    assert len(told[0]) == 400 - world.UNSEEN + 300 + 100 + 117


def test_blur_lies_on_the_kept_front_of_weighted_sums_or_above():
    kept = show.Kept("small", "forget01")
    across, up = zip(*kept.swept("NPO + retain"), strict=True)
    blur = kept.swept("BLUR-NPO")
    assert len(blur) == 5
    for forgotten, retained in blur:
        assert retained > np.interp(forgotten, across, up) - 0.01


def test_a_bad_file_is_refused_with_its_entry(tmp_path):
    file = made(tmp_path / "bad.json", lambda parts: parts["retain"][6].pop("answer"))
    with pytest.raises(ValueError, match=r"bad.json, retain, entry 7: texts \"question\" and"):
        world.read(file)
    file = made(tmp_path / "few.json", lambda parts: parts["retain"].pop())
    with pytest.raises(ValueError, match=r"few.json has no list 'retain' of 300 pairs"):
        world.read(file)
