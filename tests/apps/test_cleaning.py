"""`bilevel clean`: files are read or refused in a sentence, any model, and what is written."""

import csv
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

from bilevel.apps import cleaning
from bilevel.apps.cleaning import models
from bilevel.apps.cleaning.files import read
from bilevel.apps.cleaning.losses import self_paced


def rows(seed, n, wrong=0.0, label=lambda k: ("no", "yes")[k]):
    """Two clouds of points, some of them under the wrong label."""
    draw = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    points = draw.normal(size=(n, 2)) + 4 * truth[:, None]
    bad = draw.permutation(n) < wrong * n
    labels = [label(k) for k in np.where(bad, 1 - truth, truth)]
    return points, labels, bad


def table(path, points, labels, header="a,b,y"):
    lines = [f"{p[0]:.6f},{p[1]:.6f},{label}" for p, label in zip(points, labels, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def given(tmp_path):
    points, labels, bad = rows(0, 60, wrong=0.25)
    table(tmp_path / "train.csv", points, labels)
    table(tmp_path / "clean.csv", *rows(1, 10)[:2])
    table(tmp_path / "test.csv", *rows(2, 20)[:2])
    return tmp_path, bad


def clean(folder, *more, data="train.csv", right="clean.csv"):
    out = folder / "out"
    words = (str(folder / data), "--clean", str(folder / right), "--out", str(out), *more)
    return run("clean", *words), out


@pytest.mark.slow
def test_the_wrong_labels_of_a_table_are_found_and_written(given):
    folder, bad = given
    found, out = clean(folder, "--steps", "300", "--test", str(folder / "test.csv"))
    assert found.exit_code == 0, found.output
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "suspects.csv",
        "weights.csv",
    ]
    lines = list(csv.DictReader((out / "weights.csv").open()))
    assert [line["sample"] for line in lines] == [f"line {i}" for i in range(2, 62)]
    np.testing.assert_array_equal([line["suspected"] == "yes" for line in lines], bad)
    suspects = list(csv.DictReader((out / "suspects.csv").open()))
    assert len(suspects) == bad.sum()
    assert all(line["predicted"] != line["label"] for line in suspects)
    assert "after cleaning" in (out / "report.html").read_text("utf-8")


CSV = "a,b,y\n" + "0,1,no\n1,0,yes\n" * 8


@pytest.mark.parametrize(
    ("train", "right", "told"),
    [
        (CSV.replace("0,1,no", ",1,no", 1), CSV, "line 2, column 'a': the value is missing"),
        (CSV.replace("0,1,no", "x,1,no", 1), CSV, "line 2, column 'a': 'x'; a finite number"),
        (CSV.replace("no", "yes"), CSV, "train.csv has one class only, 'yes'"),
        (CSV, CSV.replace("no", "yes"), "clean.csv has one class only, 'yes'"),
        (CSV.replace("no", "maybe", 1), CSV, "line 2: no clean sample has the label 'maybe'"),
        (CSV[:36], CSV, "train.csv has 4 samples; at least 10 are needed"),
        (CSV, CSV[:36], "clean.csv has 4 samples; at least 5 are needed"),
        (CSV.replace("y\n", "z\n", 1), CSV, "has no column 'y'; it has 'a', 'b', 'z'"),
        (CSV, CSV.replace("b", "c", 1), "need the same columns; 'b' is in one of them only"),
        ("", CSV, "train.csv is empty"),
        (CSV.replace("no", "nö").encode("latin-1"), CSV, "line 2: byte 0xf6 is not UTF-8"),
        ("y\n" + "no\nyes\n" * 8, CSV, "train.csv has no column besides 'y'"),
    ],
    ids=range(12),
)
def test_bad_tables_are_refused_in_a_sentence(tmp_path, train, right, told):
    for name, content in (("train.csv", train), ("clean.csv", right)):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    found, out = clean(tmp_path)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("forest", "--model is 'forest'; linear, mlp, convnet, or module:function is needed."),
        ("no_such_module:make", "the module 'no_such_module' cannot be imported"),
        ("their_model:other", "their_model has no function 'other'; it has narrow, wide"),
        ("their_model:narrow", "the model returns float32[3, 1]; float[3, 2] is needed"),
        ("convnet", "a convnet needs pictures, (rows, height, width, channels)"),
    ],
)
def test_bad_models_are_refused_in_a_sentence(given, monkeypatch, model, told):
    folder, _ = given
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "their_model", raising=False)
    (folder / "their_model.py").write_text(
        "def narrow(key, inputs, classes):\n"
        "    return lambda p, x: (x[:, :1] * p).astype('float32'), 1.0\n"
        "def wide(key, inputs, classes):\n"
        "    return lambda p, x: x @ p, None\n"
    )
    found, out = clean(folder, "--model", model)
    assert found.exit_code == 2
    assert told in found.output
    assert not out.exists()


def test_a_folder_that_holds_something_is_left_alone(given):
    folder, _ = given
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    found, out = clean(folder)
    assert found.exit_code == 2
    assert "exists and is no empty folder" in found.output
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_arrays_and_folders_of_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 1), np.uint8)
    labels = np.arange(12) % 2 + 3
    np.savez(tmp_path / "a.npz", inputs=pixels, labels=labels)
    for i in range(12):
        (tmp_path / "b" / str(labels[i])).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels[i, ..., 0]).save(tmp_path / "b" / str(labels[i]) / f"{i:02}.png")
    arrays, pictures = (read(tmp_path / name, tmp_path / name) for name in ("a.npz", "b"))
    assert arrays.classes == pictures.classes == ("3", "4")
    assert pictures.places[0] == "3/00.png"
    order = np.argsort(labels, kind="stable")
    np.testing.assert_allclose(arrays.task.train.inputs[order], pictures.task.train.inputs)
    np.testing.assert_array_equal(arrays.task.train.labels[order], pictures.task.train.labels)
    np.testing.assert_allclose(arrays.task.train.inputs.std(), 1)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"inputs": np.ones((12, 2))}, "has no array 'labels'; it has 'inputs'"),
        ({"inputs": np.ones(12), "labels": np.arange(12)}, r"inputs float64\[12\]"),
        ({"inputs": np.ones((12, 2)), "labels": np.ones(12)}, r"labels float64\[12\]"),
        ({"inputs": np.full((12, 2), np.nan), "labels": np.arange(12)}, "row 0 of inputs"),
        ({"inputs": np.ones((2, 2)), "labels": np.array([{}, {}])}, "Python objects"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(tmp_path, arrays, told):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=told):
        read(tmp_path / "a.npz", tmp_path / "a.npz")


def test_the_self_paced_loss_is_its_formula():
    x, y = jnp.array([0.0, 2.0]), {"weights": jnp.zeros((1, 4)), "bias": jnp.arange(4.0)}
    part = cleaning.Labelled(jnp.ones((2, 1)), jnp.array([3, 0]))
    value = self_paced(weight=3.0).upper(x, y, (part, (jnp.arange(2), part)))
    loss = np.log(np.exp(np.arange(4)).sum()) - np.array([3, 0])
    share = 1 / (1 + np.exp(-np.asarray(x)))
    np.testing.assert_allclose(value, loss.mean() + 3 * (share * (loss - np.log(4) / 2)).mean())


@pytest.mark.slow
def test_a_classifier_of_kept_samples_is_that_of_those_alone():
    points, labels, _ = rows(0, 30, label=lambda k: k)
    samples = cleaning.Labelled(jnp.asarray(points), jnp.asarray(labels))
    keep = np.arange(30) < 20
    y0 = {"weights": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    alone = cleaning.train(jax.tree.map(lambda leaf: leaf[keep], samples), y0)
    among = cleaning.train(samples, y0, keep=keep)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), alone, among)


def test_a_gain_counts_only_beyond_three_standard_errors():
    base = np.array([0.5, 0.6, 0.7])
    sure = cleaning.Outcomes(base + np.array((0.1, 0.11, 0.12)), base, base - 0.2, base)
    unsure = cleaning.Outcomes(base + np.array((0.1, -0.1, 0.1)), base, base - 0.2, base)
    np.testing.assert_allclose(sure.gain, (0.11, 0.01 / np.sqrt(3)))
    assert (sure.pays, unsure.pays) == (True, False)


@pytest.mark.slow
@pytest.mark.parametrize(("clean", "f1"), [(30, 0.93), (100, 0.96)])
def test_cleaning_pays_with_few_clean_digits(clean, f1):
    pytest.importorskip("sklearn")
    outcomes = cleaning.over_seeds([cleaning.digits(0.5, seed, clean=clean) for seed in range(6)])
    assert outcomes.f1.min() >= 0.9
    assert outcomes.f1.mean() >= f1
    assert outcomes.pays


@pytest.mark.slow
def test_a_convnet_finds_the_wrong_labels_of_digits():
    pytest.importorskip("sklearn")
    task = cleaning.digits(0.5, clean=100)
    pictures = [part._replace(inputs=part.inputs.reshape(-1, 8, 8, 1)) for part in task[:3]]
    task = cleaning.Task(*pictures, task.wrong)
    model = models.make_convnet(jax.random.key(0), task.train.inputs, 10)
    method = cleaning.network_settings(3e-3)
    result = cleaning.clean(task, method, steps=600, model=model, batch_size=128, progress=False)
    assert cleaning.detection(result.x, task.wrong).f1 >= 0.9
