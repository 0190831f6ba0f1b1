"""How a run was asked to go."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from bilevel.data import Data
from bilevel.driver.validate.checkpoint import as_checkpoint
from bilevel.driver.validate.functions import check_arity, check_scalar, trace
from bilevel.fields import shown

MOST_STEPS = 2**31 - 1  # steps are counted in 32 bits


def check_concrete(*given: Any) -> None:
    """Nothing is being traced, as a run looks at its values."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError(
            "bl.solve was called inside jit, vmap or grad, and it looks at numbers between its "
            "chunks: use bl.run there, which is pure, or bl.lower.argmin for y*(x) alone."
        )


def check_steps(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {shown(value)}; a whole number of at least 1 is needed.")
        if value > MOST_STEPS:
            raise ValueError(f"{name} is {shown(value)}; at most {MOST_STEPS} is possible.")


def check_options(options: Any) -> None:
    """Every option is of its kind; `options` are those of `bilevel.solve`."""
    check_steps(steps=options.steps, log_every=options.log_every)
    tol = options.tol
    if isinstance(tol, bool) or not isinstance(tol, int | float | np.floating | np.integer):
        raise TypeError(f"tol is {shown(tol)}; a number of at least 0 is needed.")
    if not 0 <= tol < math.inf or tol > 1e300:
        raise ValueError(f"tol is {shown(tol)}; a number of at least 0 is needed.")
    for name, allowed in (("progress", (True, False, None)), ("certify", (True, False))):
        value = getattr(options, name)
        if not any(value is one for one in allowed):
            raise TypeError(f"{name} is {shown(value)}; True or False is needed.")
    check_arguments(options.data, options.key, options.callbacks)
    if options.checkpoint is not None:
        as_checkpoint(options.checkpoint)


def as_callbacks(callbacks: Any) -> tuple[Callable, ...]:
    """The callbacks as a tuple."""
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks is {shown(callbacks)}; a list of functions is needed.")
    return tuple(callbacks)


def check_arguments(data: Any, key: Any, callbacks: Iterable[Any]) -> None:
    if data is not None and not isinstance(data, Data):
        raise TypeError(
            f"data is of type {type(data).__name__}; bl.Data(upper=..., lower=...) is needed."
        )
    if key is not None:
        _check_key(key)
    for callback in callbacks:
        if isinstance(callback, type) or not callable(callback):
            raise TypeError(
                f"callbacks holds {shown(callback)}; functions of (step, state, row) do."
            )
        check_arity("a callback", callback, ("step", "state", "row"))


def _check_key(key: Any) -> None:
    typed = hasattr(key, "dtype") and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = getattr(key, "dtype", None) == np.uint32 and getattr(key, "shape", None) == (2,)
    if not raw and not (typed and key.shape == ()):
        several = " Give one of them." if typed else ""
        raise TypeError(
            f"key is {shown(key)}; a random key is needed, such as jax.random.key(0).{several}"
        )


def check_metrics(
    metrics: Mapping[str, Callable] | None, x: Any, y: Any, taken: Iterable[str]
) -> None:
    """Functions of (x, y) that return one number, under names that the history does not use."""
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise TypeError("metrics is a mapping from names to functions of (x, y).")
    for name, fn in metrics.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"metrics has the name {shown(name)}; text is needed.")
        if name in ("last", "best"):
            raise ValueError(f"metrics[{name!r}] has a name that keep= reads otherwise; change it.")
        if name in taken:
            raise ValueError(f"metrics[{name!r}] hides a column of the history; name it otherwise.")
        if isinstance(fn, type) or not callable(fn):
            raise TypeError(f"metrics[{name!r}] is not callable; fn(x, y) -> number is needed.")
        check_arity(f"metrics[{name!r}]", fn, ("x", "y"))
        _, out = trace(f"metrics[{name!r}]", fn, x, y)
        check_scalar(f"metrics[{name!r}]", out, "Reduce it to one number.", floating=False)
