"""A decoder on a mesh of eight devices: the same numbers, in split arrays.

One child process runs all comparisons, since JAX counts its devices once.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import llm_cases
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bilevel.apps.llm import checkpoint, decoder, lora, sampling, sharding
from bilevel.apps.llm.config import Layers, llama

pytestmark = pytest.mark.xdist_group("devices")  # one child for all
DEVICES = 8
MODEL = dataclasses.replace(llama(16, 8, 16, 2, 4, kv_heads=2), windows=(3, 3))

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import conftest, test_llm_sharding
test_llm_sharding.{call}
"""


# --- in the parent -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["scan", pytest.param("list", marks=pytest.mark.slow)])
def told(request):
    """What the child found: stacked layers on 2 by 4 devices, or a list on 4 by 2."""
    return child(f"main({request.param!r})")


def child(call):
    """The last line that a function of this file prints on eight devices."""
    program = PROGRAM.format(tests=str(Path(__file__).parent), call=call)
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryFile("w+") as out:
        code = subprocess.run(
            [sys.executable, "-c", program], env=environment, stdout=out, timeout=1200
        ).returncode
        out.seek(0)
        lines = out.read().splitlines()
    assert code == 0
    return json.loads(lines[-1])


@pytest.mark.parametrize("what", ["logprobs", "gradient", "product", "sampled"])
def test_a_mesh_gives_the_numbers_of_one_device(told, what):
    assert told[what] < 1e-10
    assert told["size of " + what] > 0.1


def test_kernels_and_their_gradients_are_split(told):
    assert told["kernel parts"] == DEVICES
    assert told["gradient parts"] == DEVICES
    assert told["adapter gradient parts"] > 1


def test_a_checkpoint_is_placed_as_it_is_read(told):
    assert told["placed"] == {"same": True, "query": 8, "norm": 1}


def test_a_mesh_larger_than_the_devices_is_refused():
    with pytest.raises(ValueError, match="needs more than the"):
        sharding.make_mesh(1024, 1024)


def test_leaves_are_split_by_name():
    config = llama(16, 8, 12, 2, 4, kv_heads=2)
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
    tree = decoder.abstract(config)
    found = sharding.specs(config, tree, mesh)
    layer = found["layers"][1]
    assert layer["query"]["kernel"] == PartitionSpec("data", "model")
    assert layer["key"]["kernel"] == PartitionSpec("data", None)  # two heads are not cut in four
    assert layer["output"]["kernel"] == PartitionSpec("model", "data")
    assert layer["down"]["kernel"] == PartitionSpec("model", "data")
    assert layer["mlp_norm"]["scale"] == PartitionSpec(None)
    assert found["embed"] == PartitionSpec("model", "data")
    stacked = sharding.specs(config, decoder.abstract(config, layers=Layers.SCAN), mesh)
    assert stacked["layers"]["up"]["kernel"] == PartitionSpec(None, "data", "model")


@pytest.mark.slow
def test_a_billion_parameters_compile_for_eight_devices():
    found = child("billion()")
    print({name: f"{n / 2**30:.2f} Gi" for name, n in found.items()}, "a device")
    assert found["parameters"] > 1.2e9
    assert found["arguments"] < 1.01 * 2 * found["parameters"] / DEVICES
    assert found["temporaries"] < 4 * 2**30


# --- in the child --------------------------------------------------------------------------


def main(layers):
    found = compare(2, 4, Layers.SCAN) if layers == "scan" else compare(4, 2, Layers.LIST)
    print(json.dumps(found | {"placed": placed()}))


def billion():
    """A training step on 1.2 billion parameters, compiled for eight devices and not run."""
    config = llama(128_256, 2048, 8192, 16, 32, kv_heads=8, tied=True)
    mesh = sharding.make_mesh(4, 2)
    how = decoder.How(remat=decoder.Remat.LAYERS, pin=sharding.activations(mesh))
    shapes = decoder.abstract(config, layers=Layers.SCAN, dtype=jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.shardings(config, shapes, mesh),
    )
    tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32, sharding=sharding.rows(mesh))

    def step(params, tokens):
        def loss(params):
            params = sharding.pin(config, params, mesh)
            return -decoder.token_logprobs(config, params, tokens, how=how, chunk=128).mean()

        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - jnp.asarray(1e-3, p.dtype) * g, params, gradient)

    compiled = jax.jit(step, donate_argnums=0).lower(params, tokens).compile()
    memory = compiled.memory_analysis()
    print(
        json.dumps(
            {
                "parameters": decoder.size(config),
                "arguments": memory.argument_size_in_bytes,
                "temporaries": memory.temp_size_in_bytes,
                "results": memory.output_size_in_bytes,
            }
        )
    )


def compare(data, model, layers):
    """Log-probabilities, gradient, Hessian product and samples: one device against a mesh."""
    mesh = sharding.make_mesh(data, model)
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, 16, (8, 6)))
    mask = jnp.asarray(random.integers(0, 4, (8, 6)) > 0).at[0].set(False)
    params = decoder.init(MODEL, jax.random.key(0), layers=layers, dtype=jnp.float64, deviation=0.5)
    adapters = lora.init(MODEL, jax.random.key(1), rank=2, layers=layers, dtype=jnp.float64)

    def results(params, adapters, tokens, mask, how):
        def loss(params):
            params = params if how.pin is None else sharding.pin(MODEL, params, mesh)
            return decoder.token_logprobs(MODEL, params, tokens, mask, how=how, chunk=4).sum()

        return {
            "logprobs": decoder.token_logprobs(MODEL, params, tokens, mask, how=how, chunk=4),
            "derivatives": jax.jvp(jax.grad(loss), (params,), (params,)),
            "adapters": jax.grad(lambda a: loss(lora.attach(params, a)))(adapters),
            "sampled": sampling.generate(
                MODEL,
                params,
                tokens,
                mask,
                key=jax.random.key(2),
                drawing=sampling.Drawing(new=3),
                how=how,
            ),
        }

    run = jax.jit(results, static_argnums=4)
    how = decoder.How(remat=decoder.Remat.LAYERS)
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
    from bilevel.apps.llm import config_json

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
