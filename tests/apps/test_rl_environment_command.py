"""`bilevel experts` and `bilevel irl --env`: files with mistakes, and a report."""

import importlib.util

import jax
import numpy as np
import pytest
from commands import run

from bilevel.apps.rl.neural import demos
from bilevel.apps.rl.neural.environments import CartPole, Pendulum
from bilevel.apps.rl.neural.experts import balance, record

ENV = CartPole(horizon=12)


@pytest.fixture(scope="module")
def good():
    made, worth = record(ENV, balance(ENV), jax.random.key(0), 2)
    held = {name: np.asarray(array) for name, array in made._asdict().items()}
    return {**held, "returns": np.asarray(worth)}


def with_(name, place, value):
    def change(good):
        array = good[name].astype(float)
        array[place] = value
        return {**good, name: array}

    return change


BAD = {
    "has no array actions": lambda g: {"observations": g["observations"]},
    r"CartPole needs \(n, t \+ 1, 4\)": lambda g: {
        **g,
        "observations": g["observations"][:, :, :3],
    },
    r"observations\[1, 2, 3\] is nan": with_("observations", (1, 2, 3), np.nan),
    r"actions\[0, 4\] is 2.0; a whole number from 0 to 1": with_("actions", (0, 4), 2),
    r"actions\[0, 4\] is 0.5": with_("actions", (0, 4), 0.5),
    "demonstration 1 stops after 7 of 12 steps": with_("lengths", 1, 7),
    "2 demonstrations of 0 actions": lambda g: {
        "observations": g["observations"][:, :1],
        "actions": g["actions"][:, :0],
    },
    r"lengths\[0\] is 0.0": with_("lengths", 0, 0),
    "demonstration 0 does not move at step 2 as CartPole does.*another environment": with_(
        "observations", (0, 3, 0), 1.0
    ),
    "demonstration 0 ended where CartPole has not": with_("ended", 0, 1),
    "unknown array 'rewards'": lambda g: {**g, "rewards": g["returns"]},
}


@pytest.mark.parametrize("said", BAD)
def test_bad_demonstrations_are_refused_with_a_sentence(tmp_path, good, said):
    np.savez(tmp_path / "bad.npz", **BAD[said](good))
    with pytest.raises(ValueError, match=said) as caught:
        demos.read(tmp_path / "bad.npz", ENV, "CartPole")
    assert "\n" not in str(caught.value)


def test_good_ones_are_read_with_their_returns(tmp_path, good):
    np.savez(tmp_path / "good.npz", **{k: v for k, v in good.items() if k != "returns"})
    found, worth = demos.read(tmp_path / "good.npz", ENV, "CartPole")
    assert worth is not None
    np.testing.assert_allclose(worth, 12)
    np.testing.assert_allclose(found.observations, good["observations"])
    with pytest.raises(ValueError, match=r"Pendulum needs \(n, t \+ 1, 3\)"):
        demos.read(tmp_path / "good.npz", Pendulum(), "Pendulum")


@pytest.mark.slow
def test_from_an_expert_to_a_report(tmp_path):
    path, out, saved = (str(tmp_path / name) for name in ("demos.npz", "irl.html", "found.npz"))
    ran = run("experts", "--episodes", "3", "--out", path)
    assert ran.exit_code == 0, ran.output
    assert "mean return 500.0" in ran.output
    ran = run(
        "irl", "--env", "CartPole-v1", "--demos", path, "--steps", "2", "--out", out,
        "--save", saved, "--checkpoint", str(tmp_path / "state"),
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "behaviour cloning" in ran.output
    assert "100 of 100" in ran.output
    with open(out) as page:
        assert "learned reward" in page.read()
    with np.load(saved) as found:
        assert found["['x'][0]['w']"].shape == (7, 32)


def test_an_expert_that_is_not_known_is_refused(tmp_path):
    ran = run("experts", "--env", "Cart-v7", "--out", str(tmp_path / "demos.npz"))
    missing = importlib.util.find_spec("gymnax") is None  # a package that is missing ends with 1
    assert ran.exit_code == (1 if missing else 2)
    assert ran.output.startswith("bilevel experts: ")
    assert ran.output.count("\n") == 1


def test_a_place_for_demonstrations_that_is_not_there_is_refused_before_any_work(tmp_path):
    ran = run("experts", "--out", str(tmp_path / "no" / "demos.npz"))
    assert ran.exit_code == 2
    assert "the demonstrations cannot be written to" in ran.output
