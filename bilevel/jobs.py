"""Independent jobs, here or wherever an executor runs them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

Item, Found = TypeVar("Item"), TypeVar("Found")


def each(
    job: Callable[[Item], Found], items: Iterable[Item], executor: Executor | None = None
) -> Iterator[Found]:
    """`job(item)` for each item, in order; all at once where an executor runs them.

    Args:
        executor: anything whose `submit(job, item)` gives a future: threads, loky for processes of
            this machine, submitit for SLURM, a client of Dask. Absent, each runs here when it is
            asked for.
    """
    if executor is None:
        yield from map(job, items)
    else:
        for future in [executor.submit(job, item) for item in items]:
            yield future.result()


def check_executor(executor: Any) -> None:
    """Raises TypeError where `executor` cannot be submitted to."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor is of type {type(executor).__name__}; one with submit(function, argument) "
            "is needed, such as concurrent.futures.ThreadPoolExecutor()."
        )
