"""Two processes solve one problem over a common mesh, are killed, and go on together."""

import json
import time
from pathlib import Path

import children
import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_devices import data, is_split, solved, starts

import bilevel as bl
from bilevel import sharding

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
PROCESSES, DEVICES, STEPS = 2, 2, 12


def main(process, port, folder, pause):
    """What each process runs: the same call, on arrays that no process holds all of."""
    children.join(process, port)
    from jax.experimental import multihost_utils

    def wait(step, state, row):
        if step == int(pause):
            Path(folder, f"paused{process}").touch()
            time.sleep(600)

    mesh, (x0, y0) = jax.make_mesh((jax.device_count(),), ("rows",)), starts()
    assert mesh.size == PROCESSES * DEVICES
    result = solved(
        x0,
        sharding.split(y0, mesh),
        data=data(mesh, batch_size=16),
        steps=STEPS,
        metrics={"size": lambda x, y: (x**2).sum() + (y["w"] ** 2).sum()},
        keep="size",
        callbacks=[wait],
        checkpoint=bl.Checkpoint(Path(folder, "states"), seconds=0),
        progress=True,
    )
    assert is_split(result.state.v["w"])
    assert not result.state.v["w"].is_fully_addressable
    whole = multihost_utils.process_allgather(result.state, tiled=True)
    certificate = result.certificate
    assert certificate is not None
    found = {
        "state": ravel_pytree((whole.x, whole.y, whole.v))[0].tolist(),
        "upper": result.history["upper"].tolist(),
        "stationarity": float(certificate.stationarity),
        "notes": result.stats.notes,
    }
    Path(folder, f"told{process}").write_text(json.dumps(found))


def test_two_processes_are_killed_and_end_where_one_does(tmp_path):
    both = children.launch("test_processes", "main", tmp_path, 6)
    try:
        marks = [tmp_path / f"paused{process}" for process in range(PROCESSES)]
        children.wait_for(both, tmp_path, lambda: all(mark.exists() for mark in marks))
    finally:
        children.end(both)

    both = children.launch("test_processes", "main", tmp_path, -1)
    try:
        children.wait_for(both, tmp_path)
    finally:
        children.end(both)

    found = [json.loads((tmp_path / f"told{i}").read_text()) for i in range(PROCESSES)]
    assert found[0]["state"] == found[1]["state"]
    assert all("resumed from step 6" in told["notes"][0] for told in found)
    one = solved(*starts(), data=data(batch_size=16), steps=STEPS, certify=True)
    state, _ = ravel_pytree((one.state.x, one.state.y, one.state.v))
    np.testing.assert_allclose(found[0]["state"], state, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[0]["upper"], one.history["upper"], rtol=1e-9)
    bars = ["SOBA" in (tmp_path / f"err{i}").read_text() for i in range(PROCESSES)]
    assert bars == [True, False]  # the first process shows progress
