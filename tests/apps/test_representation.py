"""Hyper-representation: the subspace that tasks share is found; pictures come from archives."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps import representation as rep

P, K = 8, 2
BASIS = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (P, K)))[0]


def distance(x) -> float:
    """Sine of the largest angle between the columns of x and the basis."""
    Q = np.linalg.qr(np.asarray(x))[0]
    return float(np.linalg.norm(BASIS - Q @ (Q.T @ BASIS), 2))


def learned(method, steps, **options):
    tasks = rep.subspace(jax.random.key(0), 20, basis=BASIS, n=6, noise=0.05)
    network = rep.make_linear(P, K)
    options = {"loss": rep.squared, "decay": 0.05, "rate": 0.02} | options
    return rep.learn(tasks, network, method, steps=steps, **options), network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps"),
    [("SOBA", 600), ("BSVRBv2", 2000)],
)
def test_the_shared_subspace_is_found_and_helps_on_new_tasks(method, steps):
    # Six samples of eight numbers are too few for a task alone.
    result, network = learned(method, steps)
    assert distance(result.x) < 0.15
    new = rep.subspace(jax.random.key(9), 30, basis=BASIS, n=6, noise=0.05)
    x0, _ = rep.starts(network, 1, jax.random.key(0))
    options = {"loss": rep.squared, "decay": 0.05}
    found, before = (rep.judge(x, network, new, **options) for x in (result.x, x0))
    assert found.mean + found.half < before.mean - before.half


def test_heads_are_those_of_ridge_regression():
    tasks = rep.subspace(jax.random.key(0), 3, basis=BASIS, n=6)
    network = rep.make_linear(P, K)
    x = network.init(jax.random.key(1))
    heads = rep.adapt(x, network, tasks.support, loss=rep.squared, decay=0.3)
    for inputs, targets, head in zip(*map(np.asarray, (*tasks.support, heads)), strict=True):
        h = inputs @ np.asarray(x)
        right = np.linalg.solve(h.T @ h / 6 + 0.3 * np.eye(K), h.T @ targets / 6)
        np.testing.assert_allclose(head[:, 0], right, rtol=1e-3, atol=1e-4)


def test_tasks_adapt_all_of_the_network_by_gradient_steps_from_the_start():
    tasks = rep.subspace(jax.random.key(0), 2, basis=BASIS, n=6)
    network = rep.make_linear(P, K)
    x, _ = rep.starts(network, 1, jax.random.key(1), adapt="all")
    x["head"] = jnp.ones((K, 1))
    y = rep.adapt(x, network, tasks.support, loss=rep.squared, decay=0.0, steps=2, rate=0.1)
    for b in range(2):
        inputs, targets = (np.asarray(leaf[b]) for leaf in tasks.support)
        A, w = np.asarray(x["features"]), np.asarray(x["head"])
        for _ in range(2):
            error = (inputs @ A @ w)[:, 0] - targets
            back = inputs.T @ error[:, None] / 6
            A, w = A - 0.1 * back @ w.T, w - 0.1 * A.T @ back
        np.testing.assert_allclose(x["features"] + y["features"][b], A, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(x["head"] + y["head"][b], w, rtol=1e-4, atol=1e-5)


def test_tasks_hold_as_many_samples_of_each_class_and_none_twice():
    pictures = np.arange(6 * 8, dtype=float).reshape(6, 8, 1)
    tasks = rep.episodes(pictures, 4, ways=3, shots=2, queries=5)
    assert tasks.support.inputs.shape == (4, 6, 1)
    assert tasks.query.inputs.shape == (4, 15, 1)
    for b in range(4):
        seen = np.concatenate([part.inputs[b, :, 0] for part in tasks])
        assert len(set(seen.tolist())) == 21
        classes = [
            {int(v) // 8 for v in part.inputs[b, part.targets[b] == label, 0]}
            for label in range(3)
            for part in tasks
        ]
        assert all(len(one) == 1 for one in classes)
        assert classes[0] == classes[1] != classes[2]


@pytest.mark.parametrize("wrong", [{"ways": 7}, {"ways": 1}, {"shots": 5}, {"queries": 0}])
def test_tasks_that_the_pictures_do_not_suffice_for_are_refused(wrong):
    with pytest.raises(ValueError, match="of 6 classes with 8 samples each"):
        rep.episodes(np.zeros((6, 8, 1)), 1, **({"ways": 3, "shots": 2, "queries": 4} | wrong))


def test_unknown_methods_and_too_many_tasks_a_step_are_refused():
    with pytest.raises(ValueError, match="it is one of SOBA"):
        rep.settings("Reptile", 10, lipschitz=1.0)
    with pytest.raises(ValueError, match="from 1 to 10"):
        rep.settings("BSVRBv2", 10, lipschitz=1.0, drawn=11)
    with pytest.raises(ValueError, match="head or all"):
        rep.problem(rep.make_linear(2, 2), 1, adapt="body")


def archive(path, names, shape=(105, 105)):
    """A zip with the structure of Omniglot; every drawing has ink in its first rows."""
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(path, "w") as file:
        for i, name in enumerate(names):
            pixels = np.full(shape, 255, np.uint8)
            pixels[: 7 * (i + 1)] = 0
            content = io.BytesIO()
            image.fromarray(pixels).save(content, "png")
            file.writestr(f"images/{name}.png", content.getvalue())
    return path


def test_characters_are_read_from_archives_and_an_alphabet_only_once(tmp_path):
    first = archive(tmp_path / "a.zip", ["Greek/c1/1", "Greek/c1/2", "Latin/c1/1", "Latin/c1/2"])
    other = archive(tmp_path / "b.zip", ["Greek/c1/1", "Greek/c1/2", "Thai/c1/1", "Thai/c1/2"])
    found = rep.omniglot([first, other], size=15)
    assert found.alphabets == ("Greek", "Latin", "Thai")
    assert found.pictures.shape == (3, 2, 15, 15)
    np.testing.assert_array_equal(found.pictures.sum((2, 3)) / 15, [[1, 2], [3, 4], [3, 4]])
    assert found.of(["Thai"]).alphabets == ("Thai",)
    with pytest.raises(ValueError, match="no alphabet 'Tibetan'; those read are Greek"):
        found.of(["Tibetan"])


def test_archives_that_hold_something_else_are_refused(tmp_path):
    small = archive(tmp_path / "small.zip", ["Greek/c1/1"], shape=(20, 20))
    with pytest.raises(ValueError, match=r"Greek/c1/1.png has 20 x 20 pixels"):
        rep.omniglot([small])
    uneven = archive(tmp_path / "uneven.zip", ["Greek/c1/1", "Greek/c1/2", "Greek/c2/1"])
    with pytest.raises(ValueError, match="from 1 to 2 drawings"):
        rep.omniglot([uneven])
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="cannot be read as a zip archive"):
        rep.omniglot([tmp_path / "text.zip"])
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as file:
        file.writestr("notes.txt", "nothing")
    with pytest.raises(ValueError, match="holds 0 pictures"):
        rep.omniglot([tmp_path / "none.zip"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rep.omniglot([tmp_path / "absent.zip"])
    with pytest.raises(ValueError, match="a divisor of 105"):
        rep.omniglot([], size=28)
