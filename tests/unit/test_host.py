"""What a program asks of its machine."""

import json
import platform
import subprocess
import sys

import pytest

FAULTS = """
import json, resource, sys
from bilevel import host
if sys.argv[1] == "keep":
    assert host.keep_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(x @ x.T) @ x, donate_argnums=0)
x, counts = jnp.ones((3000, 100)), []
for _ in range(40):
    x = jax.block_until_ready(step(x))
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(json.dumps(counts))
"""


def faults(how: str) -> int:
    """Pages that the system handed out in the last four steps."""
    child = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True)
    counts = json.loads(child.stdout)
    return counts[-1] - counts[-5]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_kept_memory_is_mapped_once():
    assert faults("keep") < 0.1 * faults("give back")
