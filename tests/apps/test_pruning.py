"""BiP: its hypergradient, its masks, the command, and digits at 1 % density."""

import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import hypergrad, layers, oracles
from bilevel.apps import pruning
from bilevel.apps.pruning.masks import largest
from bilevel.driver import Outcome
from bilevel.linear import Dense
from bilevel.problem import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import pruning as example

# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_k_largest_are_marked(dtype):
    values = np.abs(np.random.default_rng(0).normal(size=1000)).astype(dtype)
    for k in (1, 10, 999, 1000):
        marked = np.asarray(largest(jnp.asarray(values), k))
        assert marked.sum() == k
        assert set(np.flatnonzero(marked)) == set(np.argsort(values)[-k:])


def test_equal_scores_do_not_change_the_count():
    assert np.asarray(largest(jnp.array([1.0, 0, 1, 2, 1]), 3)).tolist() == [1, 0, 1, 1, 0]
    assert np.asarray(largest(jnp.zeros(7), 2)).sum() == 2


def test_masks_of_every_kind():
    draw = np.random.default_rng(1)
    scores = {
        "a": jnp.asarray(draw.normal(size=(8, 5))),
        "b": jnp.asarray(draw.normal(size=(4, 6))),
    }
    one = pruning.Unstructured(0.25)(scores)
    assert sum(int(m.sum()) for m in one.values()) == 16
    sizes = np.abs(np.concatenate([np.ravel(s) for s in scores.values()]))
    assert min(np.abs(scores["a"])[one["a"] == 1]) >= np.sort(sizes)[-16]

    two = pruning.NofM(2, 4)(scores)  # of four consecutive inputs of an output
    assert (two["a"].reshape(2, 4, 5).sum(1) == 2).all()
    np.testing.assert_array_equal(two["b"].sum(0), np.full(6, 2))
    np.testing.assert_array_equal(pruning.NofM(2, 4, 1)({"t": scores["a"].T})["t"], two["a"].T)

    norms = np.linalg.norm(scores["a"], axis=0)
    filters = pruning.Slices(0.4, -1)(scores)["a"]
    np.testing.assert_array_equal(filters[0], norms >= np.sort(norms)[-2])
    assert (filters == filters[:1]).all()
    channels = pruning.Slices(0.5, -2)(scores)["a"]
    assert (channels == channels[:, :1]).all()
    assert channels[:, 0].sum() == 4


def test_groups_that_do_not_divide_the_inputs_are_refused():
    with pytest.raises(ValueError, match="w has 5 inputs, which groups of 4 do not divide"):
        pruning.NofM(2, 4)({"w": jnp.ones((5, 3))})


def test_what_is_pruned():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "head": {"w": jnp.ones((3, 2))}}
    assert list(pruning.weights(params)) == ["head/w", "w"]
    assert list(pruning.weights(params, keep=("head/w",))) == ["w"]
    with pytest.raises(ValueError, match="'x' is to be kept, and is no array"):
        pruning.weights(params, keep=("x",))
    with pytest.raises(ValueError, match="no array of two axes or more"):
        pruning.weights({"b": jnp.ones(3)})


# --- hypergradient (specification 7.4) ----------------------------------------------------------


def at_minimum(loss, n, gamma):
    """The formula, and the exact hypergradient, at `y*(m)` for one mask."""
    draw = np.random.default_rng(0)
    x = {"w": jnp.asarray(draw.normal(size=(n, 1)))}
    masking = pruning.Unstructured(0.5)
    m = masking(x)
    relaxed = pruning.relaxed(loss, gamma)
    H, zero = gamma * jnp.eye(n), {"w": jnp.zeros((n, 1))}
    flat = lambda y: {"w": y.reshape(n, 1)}  # noqa: E731
    g = jax.grad(lambda y: relaxed.lower(m, flat(y), None))(jnp.zeros(n))
    H = jax.hessian(lambda y: relaxed.lower(m, flat(y), None))(jnp.zeros(n))
    y = flat(-jnp.linalg.solve(H, g))
    assert np.linalg.norm(oracles.lower_grad(relaxed, m, y, None)["w"]) < 1e-12
    exact = hypergrad.implicit(relaxed, m, y, linear=Dense()).grad
    sign, batch = jnp.sign(x["w"]), Batch()
    given = {
        name: sign * pruning.problem(loss, masking, **how).hypergradient(x, y, batch)["w"]
        for name, how in {"formula": {"gamma": gamma}, "cg": {"decay": gamma, "exact": n}}.items()
    }
    return m["w"], np.asarray(exact["w"]), given, zero


def test_formula_is_exact_where_the_loss_is_linear():
    c, gamma = np.random.default_rng(1).normal(size=(6, 1)), 3.0
    m, exact, given, _ = at_minimum(lambda z, _: jnp.sum(c * z["w"]), 6, gamma)
    np.testing.assert_allclose(exact, -2 / gamma * np.asarray(m) * c**2, rtol=1e-13, atol=1e-15)
    for one in given.values():
        np.testing.assert_allclose(one, exact, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
def test_error_of_the_formula_falls_with_gamma_and_that_of_cg_is_none():
    draw = np.random.default_rng(2)
    root, c = draw.normal(size=(8, 8)), draw.normal(size=8)
    H = root @ root.T / 8

    def loss(z, _):
        return z["w"][:, 0] @ H @ z["w"][:, 0] / 2 + c @ z["w"][:, 0]

    errors = []
    for gamma in (10.0, 100.0, 1000.0):
        _, exact, given, _ = at_minimum(loss, 8, gamma)
        np.testing.assert_allclose(given["cg"], exact, rtol=1e-9, atol=1e-12)
        errors.append(np.linalg.norm(given["formula"] - exact) / np.linalg.norm(exact))
    assert errors[0] < 0.5
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.1)


# --- the command --------------------------------------------------------------------------------

MODEL = """
import jax.numpy as jnp

def scores(weights, inputs):
    return jnp.tanh(inputs @ weights["first"]) @ weights["last"] + weights["bias"][None]

def wrong(weights, inputs):
    return inputs[:, :2]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of a user: a model, weights and data."""
    draw = np.random.default_rng(0)
    (tmp_path / "my_net_of_two_layers.py").write_text(MODEL)
    shapes = {"first": (4, 16), "last": (16, 3), "bias": (3,)}
    np.savez(tmp_path / "w.npz", **{n: draw.normal(size=s) for n, s in shapes.items()})
    labels = draw.integers(0, 3, 200)
    np.savez(
        tmp_path / "d.npz", inputs=draw.normal(size=(200, 4)) + 2 * np.eye(4)[labels], labels=labels
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


TYPED = ("prune", "w.npz", "--data", "d.npz", "--model", "my_net_of_two_layers:scores")


def test_command_writes_a_network_of_the_asked_density(folder):
    ran = commands.run(
        *TYPED, "--out", "p.safetensors", "--density", "0.25", "--keep", "last", "--steps", "40",
        "--report", "r.html",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "test accuracy, pruned by BiP" in ran.output
    from safetensors.numpy import load_file

    found = load_file(folder / "p.safetensors")
    assert np.count_nonzero(found["first"]) == 16
    assert np.count_nonzero(found["last"]) == 48
    assert "Weights kept, array by array" in (folder / "r.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model", "absent:scores"), "the module 'absent' cannot be imported"),
        (("--model", "my_net_of_two_layers:f"), "has no function 'f'; it has scores, wrong"),
        (("--model", "my_net_of_two_layers:wrong"), "scores of shape (160, 3) are needed"),
        (("--model", "scores"), "module:name is needed"),
        (("--keep", "middle"), "'middle' is to be kept, and is no array"),
        (("--kind", "n-of-m", "--pattern", "3,2"), "1 <= n < m is needed"),
        (("--kind", "n-of-m", "--pattern", "2,5"), "first has 4 inputs, which groups of 5"),
        (("--data", "absent.npz"), "absent.npz is not a file"),
        (("--data", "w.npz"), "has no inputs; it has first, last, bias"),
        (
            ("--out", "no/p.npz"),
            "the network cannot be written to no/p.npz: there is no folder",
        ),
        (("--out", "p.pkl"), "neither .npz nor .safetensors"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(folder, words, told):
    typed = [*TYPED, "--out", "p.npz"]
    for flag, value in zip(words[::2], words[1::2], strict=True):
        typed += [flag, value]
    ran = commands.run(*typed)
    assert ran.exit_code == 2
    assert told in ran.output
    assert len(ran.output.strip().splitlines()) == 1
    assert not (folder / "p.npz").exists()


def test_ctrl_c_writes_nothing(folder, monkeypatch):
    status = SimpleNamespace(outcome=Outcome.INTERRUPTED)
    stopped = SimpleNamespace(result=SimpleNamespace(status=status))
    monkeypatch.setattr("bilevel.apps.pruning.run.prune", lambda *_, **__: stopped)
    assert commands.run(*TYPED, "--out", "p.npz").exit_code == 130
    assert not (folder / "p.npz").exists()


def test_pickled_and_damaged_files_are_refused(folder):
    np.savez(folder / "w.npz", first=np.array([{}], object))
    assert "holds Python objects" in commands.run(*TYPED, "--out", "p.npz").output
    (folder / "w.npz").write_bytes(b"PK\3\4 cut off")
    assert "is not an npz file" in commands.run(*TYPED, "--out", "p.npz").output


# --- known answers ------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_at_one_percent():
    """Specification 7.4: BiP 0.970, magnitude at once 0.32 to 0.45 by layer collapse."""
    found = example.compare(seed=0)
    assert found["dense"][0] > 0.96
    assert found["BiP"][0] >= 0.96
    assert found["magnitude"][0] <= 0.6
    assert pruning.kept(found["BiP"][1].masks) == pytest.approx(0.01, abs=1e-5)


@pytest.mark.slow
def test_iterative_magnitude_is_as_good_and_takes_many_more_steps():
    train, test = example.digits(0)
    start = example.network(jax.random.key(0))
    dense = pruning.one_shot(example.loss, start, train, pruning.Unstructured(1.0), steps=2000)
    found = pruning.iterative(example.loss, dense.params, train, 0.01, steps=500)
    assert pruning.kept(found.masks) == pytest.approx(0.01, abs=1e-5)
    assert example.accuracy(found.params, test) > 0.95
    assert found.steps == 21 * 500


@pytest.mark.slow
def test_convnet_with_two_of_four_and_with_filters():
    (inputs, labels), (unseen, answers) = example.digits(0)
    train, test = (inputs.reshape(-1, 8, 8, 1), labels), (unseen.reshape(-1, 8, 8, 1), answers)
    draw = np.random.default_rng(0)
    shapes = {"one": (3, 3, 1, 16), "two": (3, 3, 16, 32), "last": (128, 10)}
    start = {
        n: jnp.asarray(draw.normal(size=s) * np.sqrt(2 / np.prod(s[:-1])))
        for n, s in shapes.items()
    }

    def scores(params, images):
        for name in ("one", "two"):
            images = layers.max_pool(jax.nn.relu(layers.conv(images, params[name])))
        return images.reshape(len(images), -1) @ params["last"]

    def loss(params, batch):
        import optax

        images, labels = batch
        found = scores(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    def accuracy(params):
        return float((scores(params, test[0]).argmax(1) == test[1]).mean())

    how = {"steps": 300, "step": 0.05}
    dense = pruning.one_shot(loss, start, train, pruning.Unstructured(1.0), **how).params
    two = pruning.prune(loss, dense, train, pruning.NofM(2, 4), keep=("one",), **how)
    half = pruning.prune(loss, dense, train, pruning.Slices(0.5, -1), keep=("last",), **how)
    assert accuracy(dense) > 0.97
    assert accuracy(two.params) > 0.97
    assert accuracy(half.params) > 0.96
    assert (np.abs(half.params["two"]).sum((0, 1, 2)) > 0).sum() == 16


def test_convolution_is_that_of_xla():
    draw = np.random.default_rng(3)
    images, kernel = (jnp.asarray(draw.normal(size=s)) for s in ((2, 5, 4, 3), (3, 3, 3, 2)))
    expected = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layers.conv(images, kernel), expected, atol=1e-12)
    pooled = layers.max_pool(images)
    assert pooled.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(pooled[0, 0, 0], np.max(images[0, :2, :2], axis=(0, 1)))
    with pytest.raises(ValueError, match="an odd size"):
        layers.patches(images, 2)
