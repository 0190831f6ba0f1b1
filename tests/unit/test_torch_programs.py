"""Programs of PyTorch's operations against NumPy, without PyTorch."""

import sys

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.interop.torch import Function, to_jax, write_back
from bilevel.interop.torch.program import Input, Node, Program, Ref, evaluate

DRAW = np.random.default_rng(0)
X, H, OUT = Ref("x"), Ref("h"), Ref("out")
DENSE = Program(
    nodes=(
        Node("t", "permute.default", (Ref("w"), (1, 0))),
        Node("h", "addmm.default", (Ref("b"), X, Ref("t"))),
        Node("out", "relu.default", (H,)),
    ),
    outputs={"out": OUT, "hidden": (H,)},
    positional=(Input("x", (None, 3)),),
    params={"w": "0.weight", "b": "0.bias"},
)
PARAMS = {"0.weight": DRAW.normal(size=(2, 3)), "0.bias": np.array([0.5, -0.5])}


def call(op, *args):
    """One operation on its own."""
    return evaluate(Program((Node("out", op, args),), OUT), {}, {}, {}, None)[0]


def test_a_program_is_evaluated_in_order_and_keeps_the_structure_of_outputs():
    x = DRAW.normal(size=(4, 3))
    found = Function({}, DENSE)(PARAMS, x)
    hidden = x @ PARAMS["0.weight"].T + PARAMS["0.bias"]
    np.testing.assert_allclose(found["hidden"][0], hidden, rtol=1e-12)
    np.testing.assert_allclose(found["out"], np.maximum(hidden, 0), rtol=1e-12)


@pytest.mark.parametrize(
    ("params", "inputs", "said"),
    [
        ({"0.weight": PARAMS["0.weight"]}, [np.ones((4, 3))], "parameter '0.bias' is missing"),
        (PARAMS | {"1.bias": 0.0}, [np.ones((4, 3))], "parameter '1.bias' is not the module's"),
        (PARAMS, [np.ones((4, 5))], r"has shape \(4, 5\); .* converted for \(any, 3\)"),
        (PARAMS, [], "with 1 positional inputs; it is called with 0"),
    ],
)
def test_arrays_that_do_not_fit_are_named(params, inputs, said):
    with pytest.raises(ValueError, match=said):
        Function({}, DENSE)(params, *inputs)


def test_dropout_wants_a_key_and_keeps_the_mean():
    node = Node("h", "native_dropout.default", (X, 0.25, True))
    take = Node("out", "operator.getitem", (H, 0))
    program = Program((node, take), OUT, (Input("x", (None,)),), draws=("layer 'drop'",))
    ones = np.ones(4000)
    with pytest.raises(ValueError, match=r"layer 'drop' draws at random: pass key="):
        Function({}, program)({}, ones)
    first, again, other = (
        Function({}, program)({}, ones, key=jax.random.key(i)) for i in (0, 0, 1)
    )
    assert set(np.unique(first)) == {0.0, 4 / 3}
    assert abs(np.mean(first) - 1) < 0.04  # four standard errors
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_batch_normalisation_returns_the_running_statistics():
    x, mean, var = DRAW.normal(size=(6, 2, 3)), np.zeros(2), np.ones(2)
    norm = "_native_batch_norm_legit_functional.default"
    out, _, _, new_mean, new_var = call(norm, x, None, None, mean, var, True, 0.1, 1e-5)
    m, v = x.mean((0, 2)), x.var((0, 2))
    expected = (x - m[:, None]) / np.sqrt(v[:, None] + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-9)
    np.testing.assert_allclose(new_mean, 0.1 * m, rtol=1e-12)
    np.testing.assert_allclose(new_var, 0.9 + 0.1 * v * 18 / 17, rtol=1e-12)


def test_a_transposed_convolution_is_the_adjoint_of_the_convolution():
    x, w = DRAW.normal(size=(2, 4, 7)), DRAW.normal(size=(6, 2, 3))
    out = call("convolution.default", x, w, None, (2,), (1,), (1,), False, (0,), 2)
    u = DRAW.normal(size=out.shape)
    back = call("convolution.default", u, w, None, (2,), (1,), (1,), True, (0,), 2)
    assert back.shape == x.shape
    np.testing.assert_allclose(np.vdot(out, u), np.vdot(x, back), rtol=1e-10)
    # One entry by hand: the second group, from its second pixel on.
    by_hand = np.sum(x[0, 2:, 1:4] * w[4])
    np.testing.assert_allclose(out[0, 4, 1], by_hand, rtol=1e-12)


def test_pooling_counts_what_it_covers():
    x = np.arange(10.0).reshape(1, 1, 2, 5)
    sizes = ((2, 2), (2, 2), (0, 0))
    (most,) = call("max_pool2d_with_indices.default", x, *sizes, (1, 1), True)
    np.testing.assert_array_equal(most[0, 0], [[6, 8, 9]])
    mean = call("avg_pool2d.default", x, *sizes, True)
    np.testing.assert_array_equal(mean[0, 0], [[3, 5, 6.5]])
    padded = call("avg_pool2d.default", x, (2, 3), (2, 3), (0, 1), False, False)
    np.testing.assert_array_equal(padded[0, 0], [[3, 5.5]])
    thirds = call("adaptive_avg_pool2d.default", x, (1, 3))
    np.testing.assert_allclose(thirds[0, 0], [[3, 4.5, 6]], rtol=1e-12)


def test_an_lstm_is_its_recursion():
    x, w = DRAW.normal(size=(3, 2, 2)), [DRAW.normal(size=(12, n)) for n in (2, 3)]
    b = [DRAW.normal(size=12) for _ in range(2)]
    start = np.zeros((1, 2, 3))
    settings = (True, 1, 0.0, False, False, False)
    out, h, c = call("lstm.input", x, (start, start), (*w, *b), *settings)
    hidden = cell = np.zeros((2, 3))
    for t in range(3):
        gates = x[t] @ w[0].T + hidden @ w[1].T + b[0] + b[1]
        i, f, o = (1 / (1 + np.exp(-gates[:, 3 * k : 3 * k + 3])) for k in (0, 1, 3))
        cell = f * cell + i * np.tanh(gates[:, 6:9])
        hidden = o * np.tanh(cell)
        np.testing.assert_allclose(out[t], hidden, rtol=1e-9)
    np.testing.assert_allclose(h[0], hidden, rtol=1e-9)
    np.testing.assert_allclose(c[0], cell, rtol=1e-9)


@pytest.mark.parametrize("function", [to_jax, lambda module: write_back(module, {})])
def test_without_pytorch_it_says_how_to_install_it(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"need torch.*pip install 'bilevel\[pytorch\]'"):
        function(object())


def test_it_is_an_attribute_of_the_library():
    assert bl.interop.torch.to_jax is to_jax
