"""Versions and machine, for readers who want to judge the timings."""

import importlib.metadata
import os
import platform

import jax
import jax.numpy as jnp

from bilevel._version import __version__


def environment() -> dict[str, str]:
    """Names and values without private data: no paths, host or user names."""
    devices = jax.devices()
    return {
        "bilevel": __version__,
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax")},
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(_processors()),
        "jax devices": f"{len(devices)} × {devices[0].device_kind}",
        "precision": jnp.zeros(()).dtype.name,
    }


def _processors() -> int:
    """The CPU cores that this process may use, if the system reports them."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
