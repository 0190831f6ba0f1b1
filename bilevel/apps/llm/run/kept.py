"""A run whose state is kept in a folder, and what is said where the memory is full."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.apps.llm.run.settings import Training
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.errors import Refused
from bilevel.methods.base import AbstractMethod
from bilevel.problem import Problem
from bilevel.selection import solve


@contextlib.contextmanager
def advice_on_memory(advice: str) -> Iterator[None]:
    """An error that says that memory is full becomes a sentence with what to do about it.

    Of the device or the host. A full disk has the same word in errors of other packages.

    Raises:
        Refused: out of memory.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if not (ours or isinstance(error, MemoryError)):
            raise
        raise Refused(f"out of memory. {advice}") from error


def solve_one_level(
    problem: Problem,
    method: AbstractMethod,
    x0: PyTree,
    data: Data,
    *,
    asked: Training,
    steps: int,
    folder: Path | None,
    metrics: Mapping[str, Callable],
    callbacks: Sequence[Callable[[int, Any, Any], Any]] = (),
    advice: str,
) -> Result:
    """`solve` where only x moves (y is an unused scalar); goes on where an earlier call ended.

    Args:
        folder: where the state of the run is kept.
        advice: what to do where memory is full.

    Raises:
        Refused: out of memory.
    """
    with advice_on_memory(advice):
        return solve(
            problem,
            method,
            x0,
            jnp.zeros(()),
            data=data,
            steps=steps,
            key=jax.random.key(asked.seed),
            metrics=dict(metrics),
            log_every=min(asked.log_every, steps),
            callbacks=callbacks,
            checkpoint=folder,
            certify=False,
            progress=False,
        )
