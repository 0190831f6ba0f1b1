"""Modules of PyTorch and their JAX functions: equal outputs, equal gradients, refusals in words.

They need PyTorch, which the nightly run installs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.certificates import Verdict
from bilevel.interop.torch import to_jax, write_back

pytestmark = pytest.mark.slow


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def mlp(torch):
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)


def resnet(torch):
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.path = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x):
            return torch.relu(x + self.path(x))

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), Block(4), nn.MaxPool2d(2), Block(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    return net, torch.randn(6, 3, 11, 11)


def transformer(torch):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
    return layer, torch.randn(3, 5, 8)


def lstm(torch):
    nn = torch.nn

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True)
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0][:, -1])

    return Last(), torch.randn(3, 6, 3)


def gru(torch):
    return torch.nn.GRU(3, 4, batch_first=True), torch.randn(3, 6, 3)


def upsampling(torch):
    nn = torch.nn
    net = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2), nn.GroupNorm(2, 4),
        nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(4, 1, 3, padding="same", dilation=2),
    )  # fmt: skip
    return net, torch.randn(2, 2, 5, 5)


def tokens(torch):
    nn = torch.nn
    net = nn.Sequential(nn.Embedding(10, 4, padding_idx=0), nn.RMSNorm(4), nn.PReLU())
    return net, torch.randint(0, 10, (3, 6))


CASES = [mlp, resnet, transformer, lstm, gru, upsampling, tokens]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_outputs_gradients_and_buffers_are_those_of_pytorch(case, train, torch):
    module, x = case(torch)
    module = module.double().train(train)
    x = x.double() if x.is_floating_point() else x
    params, net = to_jax(module, x)
    assert params.keys() == {name for name, _ in module.named_parameters()}
    x = x.tile((2,) + (1,) * (x.ndim - 1))  # the number of rows is free

    @jax.jit
    def found(params, x):
        def loss(params):
            out, buffers = net.apply(params, net.buffers, x)
            leaves = jax.tree.leaves(out)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves), (leaves, buffers)

        return jax.grad(loss, has_aux=True)(params)

    grads, (outs, buffers) = found(params, jnp.asarray(x.numpy()))
    expected = torch.utils._pytree.tree_leaves(module(x))
    sum(out.sin().sum() for out in expected).backward()
    for ours, theirs in zip(outs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-9, atol=1e-11)
    for name, theirs in module.named_parameters():
        np.testing.assert_allclose(grads[name], theirs.grad, rtol=1e-8, atol=1e-10, err_msg=name)
    for name, theirs in module.named_buffers():
        np.testing.assert_allclose(buffers[name], theirs, rtol=1e-9, err_msg=name)


def test_the_hypergradient_of_a_head_agrees_with_differences(torch):
    """Weights of the rows that a linear head is trained on, over frozen features."""
    body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh()).requires_grad_(False)
    module = torch.nn.Sequential(body, torch.nn.Linear(6, 3)).double()
    params, net = to_jax(module, torch.randn(8, 4).double())
    assert params.keys() == {"1.weight", "1.bias"}
    assert net.buffers.keys() == {"0.0.weight", "0.0.bias"}
    draw = np.random.default_rng(0)
    X, t = draw.normal(size=(12, 4)), draw.integers(0, 3, 12)

    def losses(y, rows):
        logits = net(y, X[rows])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), t[rows][:, None], 1)[:, 0]

    head, rest = slice(0, 8), slice(8, 12)
    problem = bl.Problem(
        lambda x, y, batch: jnp.mean(losses(y, rest)),
        lambda x, y, batch: (
            jnp.mean(jax.nn.sigmoid(x) * losses(y, head)) + 0.05 * bl.trees.dot(y, y)
        ),
    )
    checked = bl.certificates.check_hypergradient(problem, jnp.zeros(8), params, directions=3)
    assert checked.verdict is Verdict.AGREES, checked


def test_weights_are_written_back(torch):
    module, x = resnet(torch)
    module.train()
    params, net = to_jax(module, x)
    halved = jax.tree.map(lambda leaf: leaf * 0.5, params)
    _, buffers = net.apply(halved, net.buffers, x.numpy())
    before = {name: one.clone() for name, one in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"'0.bias' has shape \(5,\); the module's is \(4,\)"):
        write_back(module, {"0.weight": params["0.weight"] * 2, "0.bias": np.ones(5)})
    with pytest.raises(ValueError, match="no parameter or buffer 'head'"):
        write_back(module, {"head": np.ones(5)})
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    write_back(module, halved, buffers)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensor, (halved | buffers)[name])
    np.testing.assert_array_equal(halved["0.bias"] * 2, before["0.bias"])  # no shared memory


def test_dropout_in_training_mode(torch):
    module = torch.nn.Sequential(torch.nn.Linear(4, 400), torch.nn.Dropout(0.5))
    params, net = to_jax(module.train(), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"layer '1' draws at random"):
        net(params, np.ones((2, 4)))
    dropped = net(params, np.ones((2, 4), np.float32), key=jax.random.key(0))
    kept = to_jax(module.eval(), torch.ones(2, 4))[1](params, np.ones((2, 4), np.float32))
    share = np.mean(np.asarray(dropped) == 0)
    assert 0.4 < share < 0.6
    np.testing.assert_allclose(dropped[dropped != 0], 2 * kept[dropped != 0], rtol=1e-6)


def test_what_cannot_be_converted_is_named(torch):
    nn = torch.nn

    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort()[0]

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"operation sort.default of PyTorch, in layer '1', has"):
        to_jax(nn.Sequential(nn.Linear(4, 4), Sorted()), x)
    with pytest.raises(ValueError, match=r"cannot read Branches: .* must not branch on values"):
        to_jax(Branches(), x)
    with pytest.raises(TypeError, match=r"module is a function; a torch.nn.Module is needed"):
        to_jax(lambda x: x, x)
    with pytest.raises(TypeError, match=r"example 0 is a ndarray; a torch.Tensor is needed"):
        to_jax(nn.Linear(4, 4), np.ones((2, 4)))


def test_double_precision_is_not_lost_silently(torch):
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r"'weight' is float64, and JAX computes in float32"):
            to_jax(torch.nn.Linear(4, 4).double(), torch.ones(2, 4).double())
    finally:
        jax.config.update("jax_enable_x64", True)


def test_tied_parameters_are_one(torch):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 3)
            self.out = torch.nn.Linear(3, 5, bias=False)
            self.out.weight = self.table.weight

        def forward(self, rows, *, scale):
            return {"logits": self.out(self.table(rows)) * scale}

    module, rows = Tied(), torch.tensor([[1, 2, 3], [0, 1, 4]])
    params, net = to_jax(module, rows, scale=torch.tensor([2.0, 3.0]).reshape(2, 1, 1))
    assert params.keys() == {"table.weight"}
    scale = np.full((2, 1, 1), 0.5, np.float32)
    found = net(params, rows.numpy(), scale=scale)["logits"]
    expected = module(rows, scale=torch.tensor(scale))["logits"].detach()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"1 positional inputs and \['scale'\]; .* with 1"):
        net(params, rows.numpy())
