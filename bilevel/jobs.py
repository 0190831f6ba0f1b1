"""Independent jobs, here or wherever an executor runs them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

from bilevel.errors import Failed

Item = TypeVar("Item")
Found = TypeVar("Found")


def each(
    job: Callable[[Item], Found], items: Iterable[Item], executor: Executor | None = None
) -> Iterator[Found]:
    """`job(item)` for each item, in order; all at once where an executor runs them.

    Args:
        executor: anything whose `submit(job, item)` gives a future: threads, loky for processes of
            this machine, submitit for SLURM, a client of Dask. Absent, each runs here when it is
            asked for.

    Raises:
        Failed: where the executor runs them, JAX computes in another precision than here.
    """
    if executor is None:
        yield from map(job, items)
    else:
        alike = partial(_alike, _double(), job)
        for future in [executor.submit(alike, item) for item in items]:
            yield future.result()


def _double() -> bool:
    import jax

    return bool(jax.config.read("jax_enable_x64"))


def _alike(double: bool, job: Callable[[Item], Found], item: Item) -> Found:
    """What arrives in single precision is rounded already, so this is refused, not mended."""
    if _double() != double:
        raise Failed(
            "the processes or threads of the executor compute in another precision than the "
            f"program: start it with JAX_ENABLE_X64={int(double)} in the environment."
        )
    return job(item)


def check_executor(executor: Any) -> None:
    """Raises TypeError where `executor` cannot be submitted to."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor is of type {type(executor).__name__}; one with submit(function, argument) "
            "is needed, such as concurrent.futures.ThreadPoolExecutor()."
        )
