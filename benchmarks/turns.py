"""Two programs that take turns: each in a process of its own, both on one core.

One side answers requests, a line each, with the processor seconds of the call; the other asks. As
both measure processor time, and no two calls run at once, what else the machine does falls on both
alike.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def pin() -> None:
    """This process, and those that it starts, on one core: pools then have one thread.

    Raises:
        RuntimeError: the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeError("this comparison pins both sides to one core, which needs Linux.")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def serve(cases: dict[str, Callable[[], Any]], out: int) -> None:
    """Answer requests on standard input until it ends; `out` is from `quiet`."""
    with os.fdopen(out, "w") as answers:
        answers.write("\n")
        answers.flush()
        for line in sys.stdin:
            start = time.process_time()  # of all threads
            value = cases[line.strip()]()
            answers.write(json.dumps([time.process_time() - start, value]) + "\n")
            answers.flush()


def quiet() -> int:
    """Standard output for the answers alone: what libraries print goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    return out


class Side:
    """A module that serves, in a process of its own."""

    def __init__(self, module: str, *arguments: str):
        command = [sys.executable, "-m", module, *arguments]
        pipe = subprocess.PIPE
        self._module = module
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, case: str) -> tuple[float, Any]:
        """Processor seconds of a call, and what it returned."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        seconds, value = json.loads(self._answer())
        return seconds, value

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._module} ended with {code}; what it said is above.")
        return line
