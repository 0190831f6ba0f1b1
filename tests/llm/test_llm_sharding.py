"""A decoder on a mesh of eight devices: the same numbers, in split arrays.

One child process runs all comparisons, since JAX counts its devices once.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import aligned_cases
import children
import jax
import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks import billion
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import decoder, lora, parameters, sampling, sharding, transformer
from bilevel.apps.llm.models.config import Layers, llama
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune

pytestmark = pytest.mark.xdist_group("devices")  # one child for all
DEVICES = 8
MODEL = dataclasses.replace(llama(16, 8, 16, 2, 4, kv_heads=2), windows=(3, 3))


# --- in the parent -------------------------------------------------------------------------


scan_first = pytest.mark.slow(unless=lambda told: told == "scan")


@pytest.fixture(scope="module", params=["scan", "list"])
def told(request):
    """What the child found: stacked layers on 2 by 4 devices, or a list on 4 by 2."""
    return children.answer("test_llm_sharding", "main", request.param)


@scan_first
@pytest.mark.parametrize("what", ["logprobs", "gradient", "product", "sampled"])
def test_a_mesh_gives_the_numbers_of_one_device(told, what):
    assert told[what] < 1e-10
    assert told["size of " + what] > 0.1


@scan_first
def test_kernels_and_their_gradients_are_split(told):
    assert told["kernel parts"] == DEVICES
    assert told["gradient parts"] == DEVICES
    assert told["adapter gradient parts"] > 1


@scan_first
def test_a_checkpoint_is_placed_as_it_is_read(told):
    assert told["placed"] == {"same": True, "query": 8, "norm": 1}


def test_a_mesh_larger_than_the_devices_is_refused():
    with pytest.raises(ValueError, match="needs more than the"):
        sharding.make_mesh(1024, 1024)


def test_leaves_are_split_by_name():
    config = llama(16, 8, 12, 2, 4, kv_heads=2)
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
    tree = parameters.abstract(config)
    found = sharding.specs(config, tree, mesh)
    layer = found["layers"][1]
    assert layer["query"]["kernel"] == PartitionSpec("data", "model")
    assert layer["key"]["kernel"] == PartitionSpec("data", None)  # two heads are not cut in four
    assert layer["output"]["kernel"] == PartitionSpec("model", "data")
    assert layer["down"]["kernel"] == PartitionSpec("model", "data")
    assert layer["mlp_norm"]["scale"] == PartitionSpec(None)
    assert found["embed"] == PartitionSpec("model", "data")
    stacked = sharding.specs(config, parameters.abstract(config, layers=Layers.SCAN), mesh)
    assert stacked["layers"]["up"]["kernel"] == PartitionSpec(None, "data", "model")


ALIGNED = {
    "all, stacked": (FullFineTune(), Layers.SCAN, (2, 4)),
    "all, a list": (FullFineTune(), Layers.LIST, (4, 2)),
    "an adapter": (Adapter(rank=2), Layers.LIST, (4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIGNED)
def test_a_mesh_aligns_like_one_device(case):
    found = children.answer("test_llm_sharding", "align", case)
    for name in ("policy", "reward"):
        assert found[name]["difference"] < 1e-9
        assert found[name]["moved"] > 1e-3
    assert found["said"]["difference"] == 0
    split = found["parts"]
    assert split["before"] == split["after"] == split["momentum"]
    assert max(split["after"]) == (DEVICES if "all" in case else 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "bytes_of_a_parameter", "gib"), [("training", 2, 4), ("aligning", 8, 9)]
)
def test_a_billion_parameters_compile_for_eight_devices(step, bytes_of_a_parameter, gib):
    """An AIHF step holds policy, reference and two moments, in bfloat16 and split over all."""
    found = billion.Plan(*children.answer("test_llm_sharding", "plan", step))
    assert found.parameters > 1.2e9
    assert found.arguments < 1.01 * bytes_of_a_parameter * found.parameters / DEVICES
    assert found.temporaries < gib * 2**30


# --- in the child --------------------------------------------------------------------------


def main(layers):
    found = compare(2, 4, Layers.SCAN) if layers == "scan" else compare(4, 2, Layers.LIST)
    print(json.dumps(found | {"placed": placed()}))


def plan(step):
    """What `python -m benchmarks.billion` tells."""
    print(json.dumps(getattr(billion, step)(billion.devices())))


def align(case):
    """One alignment on one device and on a mesh: how far apart they end, and how split."""
    trained, layers, shape = ALIGNED[case]
    mesh = sharding.make_mesh(*shape)
    params = aligned_cases.made(layers)
    one = aligned_cases.ended(trained, params)
    many = aligned_cases.ended(trained, params, mesh)
    start = many.start.policy, many.start.reward

    def apart(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(np.abs(np.asarray(p, float) - np.asarray(q)).max()) for p, q in pairs)

    names = ("policy", "reward", "said")
    row = {name: {"difference": apart(getattr(one, name), getattr(many, name))} for name in names}
    for name in names[:2]:
        row[name]["moved"] = apart(getattr(many.start, name), getattr(many, name))
    momentum = many.result.state.updates[1].own[0].trace
    ends = {"before": start[0], "after": many.policy, "momentum": momentum}
    row["parts"] = {when: [parts(x) for x in jax.tree.leaves(y)] for when, y in ends.items()}
    print(json.dumps(row))


def compare(data, model, layers):
    """Log-probabilities, gradient, Hessian product and samples: one device against a mesh."""
    mesh = sharding.make_mesh(data, model)
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, 16, (8, 6)))
    mask = jnp.asarray(random.integers(0, 4, (8, 6)) > 0).at[0].set(False)
    params = parameters.init(
        MODEL, jax.random.key(0), layers=layers, dtype=jnp.float64, deviation=0.5
    )
    adapters = lora.init(MODEL, jax.random.key(1), rank=2, layers=layers, dtype=jnp.float64)

    def results(params, adapters, tokens, mask, how):
        def loss(params):
            params = params if how.pin is None else sharding.constrain(MODEL, params, mesh)
            return decoder.token_logprobs(MODEL, params, tokens, mask, compute=how, chunk=4).sum()

        return {
            "logprobs": decoder.token_logprobs(MODEL, params, tokens, mask, compute=how, chunk=4),
            "derivatives": jax.jvp(jax.grad(loss), (params,), (params,)),
            "adapters": jax.grad(lambda a: loss(lora.attach(params, a)))(adapters),
            "sampled": sampling.generate(
                MODEL,
                params,
                tokens,
                mask,
                key=jax.random.key(2),
                drawing=sampling.Drawing(new=3),
                compute=how,
            ),
        }

    run = jax.jit(results, static_argnums=4)
    how = transformer.ComputeOptions(remat=transformer.Remat.LAYERS)
    one = run(params, adapters, tokens, mask, how)
    pinned = dataclasses.replace(how, pin=sharding.activations(mesh))
    places = sharding.put(MODEL, params, mesh), sharding.put(MODEL, adapters, mesh)
    many = run(*places, *sharding.put_rows((tokens, mask), mesh), pinned)
    row = {
        "kernel parts": parts(_layer(places[0])["query"]["kernel"]),
        "gradient parts": parts(_layer(many["derivatives"][0])["query"]["kernel"]),
        "adapter gradient parts": parts(_layer(many["adapters"])["query"]["b"]),
    }
    pairs = {
        "logprobs": (one["logprobs"], many["logprobs"]),
        "gradient": (one["derivatives"][0], many["derivatives"][0]),
        "product": (one["derivatives"][1], many["derivatives"][1]),
        "sampled": (one["sampled"], many["sampled"]),
    }
    for name, (a, b) in pairs.items():
        leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        row[name] = max(
            float(np.abs(np.asarray(p, float) - np.asarray(q)).max()) for p, q in leaves
        )
        row["size of " + name] = max(float(np.abs(np.asarray(p, float)).max()) for p, _ in leaves)
    return row


def _layer(tree):
    return tree["layers"] if isinstance(tree["layers"], dict) else tree["layers"][0]


def parts(array):
    """Over how many devices the entries of an array are spread."""
    return array.size // int(np.prod(array.sharding.shard_shape(array.shape)))


def placed():
    """Each device is given its part while a folder is read."""
    from bilevel.apps.llm.hub import config_json

    with tempfile.TemporaryDirectory() as folder:
        source = llm_cases.write_folder("llama-v4", Path(folder) / "model")
        config = config_json.read(llm_cases.CASES["llama-v4"])
        place = sharding.placer(config, sharding.make_mesh(4, 2))
        whole = checkpoint.load(source).params
        split = checkpoint.load(source, place=place).params
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), whole, split)
    layer = split["layers"][0]
    return {
        "same": all(jax.tree.leaves(same)),
        "query": parts(layer["query"]["kernel"]),
        "norm": parts(layer["mlp_norm"]["scale"]),
    }
