"""`bilevel irl` as typed: a report from demonstrations, and files with mistakes."""

from types import SimpleNamespace

import numpy as np
import pytest
from commands import run

from bilevel.apps.rl import demos
from bilevel.driver import Outcome

WALLS = np.zeros((2, 2), int)
GOOD = {  # from the upper left corner, right and down
    "walls": WALLS,
    "states": np.array([[0, 1, 3, 3], [0, 1, 3, 3], [2, 3, 3, 3]]),
    "actions": np.array([[1, 2, 2], [1, 2, 1], [1, 1, 2]]),
}


def changed(name, place, value):
    array = GOOD[name].astype(float)
    array[place] = value
    return {**GOOD, name: array}


BAD = {
    "no array states": {"walls": WALLS, "actions": GOOD["actions"]},
    "either walls": {k: v for k, v in GOOD.items() if k != "walls"},
    r"\(n, t \+ 1\)": {**GOOD, "states": GOOD["states"][:, :-1]},
    r"states\[0, 1\] is nan": changed("states", (0, 1), np.nan),
    r"actions\[2, 0\] is 4.0; a whole number from 0 to 3": changed("actions", (2, 0), 4),
    r"states\[0, 3\] is 4.0": changed("states", (0, 3), 4),
    r"actions\[0, 0\] is 0.5": changed("actions", (0, 0), 0.5),
    "demonstration 1 goes from state 0 by action 1 to state 2.*another environment": changed(
        "states", (1, 1), 2
    ),
    "0 demonstrations": {**GOOD, "states": np.zeros((0, 4)), "actions": np.zeros((0, 3))},
    r"lengths\[1\] is 4": {**GOOD, "lengths": np.array([3, 4, 1])},
    "unknown array 'rewards'": {**GOOD, "rewards": np.zeros((4, 4))},
    r"reward has shape \(4, 3\)": {**GOOD, "reward": np.zeros((4, 3))},
    "0 .free. and 1": {**GOOD, "walls": WALLS + 2},
    "no law": {**{k: v for k, v in GOOD.items() if k != "walls"}, "kernel": np.ones((4, 4, 4))},
    "is no array of real numbers": {**GOOD, "start": np.array(["a", "b", "c", "d"])},
    "an array of numbers is needed": {**GOOD, "start": np.array([{}], object)},
}


@pytest.mark.parametrize("said", BAD)
def test_bad_demonstrations_are_refused_with_a_sentence(tmp_path, said):
    np.savez(tmp_path / "bad.npz", **BAD[said])
    with pytest.raises(ValueError, match=said) as caught:
        demos.read(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(ValueError, match="not an npz file"):
        demos.read(tmp_path / "no.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"is neither \.npz nor \.safetensors; save the arrays"):
        demos.read(tmp_path / "one.npy")
    ran = run("irl", "--demos", str(tmp_path / "none.npz"))
    assert ran.exit_code == 2
    assert ran.output == f"bilevel irl: {tmp_path / 'none.npz'} is not a file.\n"


def test_what_stands_after_the_end_is_not_read(tmp_path):
    states = GOOD["states"].copy()
    states[2, 2:] = -1
    np.savez(tmp_path / "short.npz", **{**GOOD, "states": states}, lengths=[3, 3, 1])
    found = demos.read(tmp_path / "short.npz")
    assert found.demos.states[2].tolist() == [2, 3, 0, 0]
    np.testing.assert_allclose(found.mdp.start, [2 / 3, 0, 1 / 3, 0])


def test_a_report_of_the_reward(tmp_path):
    reward = np.zeros((4, 4))
    reward[3] = 1
    path, out, saved = (tmp_path / name for name in ("demos.npz", "irl.html", "found.npz"))
    np.savez(path, **GOOD, reward=reward)
    ran = run(
        "irl", "--demos", str(path), "--steps", "200", "--out", str(out), "--save", str(saved)
    )
    assert ran.exit_code == 0, ran.output
    assert "inverse RL" in ran.output
    page = out.read_text()
    assert "learned reward, reshaped" in page
    assert "held-out log likelihood" in page
    with np.load(saved) as found:
        assert np.argmax(found["policy"], axis=1)[:2].tolist() == [1, 2]


def test_ctrl_c_writes_nothing_and_places_are_looked_at_before(tmp_path, monkeypatch):
    np.savez(tmp_path / "demos.npz", **GOOD)
    typed = ["irl", "--demos", str(tmp_path / "demos.npz"), "--out", str(tmp_path / "irl.html")]
    ran = run(*typed, "--save", str(tmp_path / "none" / "found.npz"))
    assert ran.exit_code == 2
    assert "there is no folder" in ran.output
    status = SimpleNamespace(outcome=Outcome.INTERRUPTED)
    stopped = SimpleNamespace(result=SimpleNamespace(status=status))
    monkeypatch.setattr("bilevel.apps.rl.run.learn", lambda *_: stopped)
    assert run(*typed).exit_code == 130
    assert not (tmp_path / "irl.html").exists()
