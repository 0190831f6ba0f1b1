"""How much work the compiler puts into a program.

Solving a small problem takes milliseconds, and compiling what solves it seconds. So programs that
run a few times on few numbers are compiled with little effort: two to three times sooner, and they
run two to five times slower.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer

FEW = 10_000  # entries of all arrays, up to which little effort is made
LITTLE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def options(*args: Any, more: int = 0) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for a program that runs a few times on these arguments.

    Args:
        more: entries of other arrays, which the program closes over.
    """
    return _little() if _are_few(args, more) else None


def briefly(fn: Callable) -> Callable:
    """`eqx.filter_jit` of a function that runs a few times; inside another program, no more."""
    usual = eqx.filter_jit(fn)

    @functools.cache
    def hasty():
        jit: Any = eqx.filter_jit  # which passes options on to `jax.jit`
        return jit(fn, compiler_options=_little())

    @functools.wraps(fn)
    def call(*args: Any, **given: Any) -> Any:
        return (hasty() if _are_few((args, given)) else usual)(*args, **given)

    return call


def _are_few(args: Any, more: int = 0) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(args) if eqx.is_array(leaf)]
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return False
    return more + sum(leaf.size for leaf in leaves) <= FEW


@functools.cache
def _little() -> dict[str, Any] | None:
    """The options, where this XLA has them and compiles for a CPU."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=LITTLE).lower().compile()
    except Exception:  # of another name in another version
        return None
    return LITTLE
