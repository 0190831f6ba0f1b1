"""Child processes: a function of a test module on several devices, or in several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
PROGRAM = """
import sys
sys.path[:0] = {folders!r}
import conftest, {module}
{module}.{function}(*sys.argv[1:])
"""


def _started(module: str, function: str, told: list[Any], devices: int, **to) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    paths = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    (file,) = TESTS.glob(f"*/{module}.py")
    folders = [str(file.parent), str(TESTS)]
    program = PROGRAM.format(folders=folders, module=module, function=function)
    return subprocess.Popen([sys.executable, "-c", program, *map(str, told)], env=environment, **to)


def answer(module: str, function: str, *told: Any, devices: int = 8) -> Any:
    """What a function of a test module prints last, as JSON, on so many devices."""
    return answers(module, function, *told, devices=devices)[-1]


def answers(module: str, function: str, *told: Any, devices: int = 8) -> list[Any]:
    """The lines that a function of a test module prints, each JSON, on so many devices."""
    with tempfile.TemporaryFile("w+") as out:
        child = _started(module, function, list(told), devices, stdout=out)
        try:
            code = child.wait(1200)
        finally:
            end([child])
        out.seek(0)
        lines = out.read().splitlines()
    assert code == 0
    return [json.loads(line) for line in lines]


def launch(
    module: str, function: str, folder: Path, *told: Any, processes: int = 2, devices: int = 2
) -> list[subprocess.Popen]:
    """Processes that each call `function(process, port, folder, *told)`."""
    port = free_port()
    return [
        _started(
            module,
            function,
            [process, port, folder, *told],
            devices,
            stdout=subprocess.DEVNULL,
            stderr=Path(folder, f"err{process}").open("w"),
        )
        for process in range(processes)
    ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join(process: str, port: str, processes: int = 2) -> None:
    """In a child: be one of several."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", processes, int(process), initialization_timeout=120
    )


def wait_for(
    children: list[subprocess.Popen], folder: Path, done: Callable[[], bool] | None = None, *,
    seconds: float = 300
) -> None:  # fmt: skip
    """Until `done()`, or until all have ended well.

    A child that fails, or a limit that passes, is told with what was printed.
    """
    deadline = time.monotonic() + seconds
    while True:
        over = done() if done else all(child.poll() is not None for child in children)
        failed = any(child.poll() not in (None, 0) for child in children)
        if over and not failed:
            return
        if failed or time.monotonic() > deadline:
            end(children)
            printed = sorted(Path(folder).glob("err*"))
            told = "\n".join(file.read_text()[-3000:] for file in printed)
            pytest.fail(f"{'a process failed' if failed else 'time is up'}:\n{told}")
        time.sleep(0.05)


def end(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
