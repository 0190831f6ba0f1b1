"""Two processes align one model, of which each holds a half, like one process that holds it all."""

import json
from pathlib import Path

import aligned_cases
import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint, write
from bilevel.apps.llm.models import sharding
from bilevel.apps.llm.models.config import Layers
from bilevel.apps.llm.models.trainable import FullFineTune

pytest.importorskip("safetensors")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def main(process, port, folder):
    """What each process runs: weights placed as they are read, a run, a folder written."""
    children.join(process, port)
    mesh = sharding.make_mesh(2, 2)
    place = sharding.placer(aligned_cases.CONFIG, mesh)
    loaded = checkpoint.load(Path(folder, "model"), layers=Layers.SCAN, place=place)
    assert all(not leaf.is_fully_addressable for leaf in jax.tree.leaves(loaded.params))
    held = [_held(loaded.params)]
    found = aligned_cases.ended(FullFineTune(), loaded.params, mesh)
    held.append(_held(found.policy))
    checkpoint.save(checkpoint.new(loaded.config, found.policy), Path(folder, "aligned"))
    told = jax.tree.map(write.fetch, (found.reward, found.said))
    history = {name: found.result.history[name].tolist() for name in ("upper",)}
    Path(folder, f"told{process}").write_text(
        json.dumps([held, history, *(flat(tree).tolist() for tree in told)])
    )


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)])


def _held(params) -> float:
    """The share of the kernels that the devices of this process hold."""
    kernels = params["layers"]["query"]["kernel"], params["embed"], params["head"]["kernel"]
    here = sum(shard.data.size for leaf in kernels for shard in leaf.addressable_shards)
    return here / sum(leaf.size for leaf in kernels)


def test_two_processes_end_where_one_does(tmp_path):
    params = aligned_cases.made(Layers.SCAN)
    checkpoint.save(checkpoint.new(aligned_cases.CONFIG, params), tmp_path / "model")
    both = children.launch("test_llm_processes", "main", tmp_path)
    try:
        one = aligned_cases.ended(FullFineTune(), params)
        children.wait_for(both, tmp_path)
    finally:
        children.end(both)
    told = [json.loads((tmp_path / f"told{process}").read_text()) for process in range(2)]
    assert told[0] == told[1]
    held, history, reward, said = told[0]
    assert held == [0.5, 0.5]
    np.testing.assert_allclose(history["upper"], one.result.history["upper"], rtol=1e-9)
    np.testing.assert_allclose(reward, flat(one.reward), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(said, flat(one.said))
    saved = checkpoint.load(tmp_path / "aligned", layers=Layers.SCAN).params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.policy, params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), saved, one.policy
    )
