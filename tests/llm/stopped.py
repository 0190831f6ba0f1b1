"""Stop a piece of code at any of its moments: before every call that changes a file."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any

CALLS = {"open", "write", "mkdir", "rename", "rmdir", "unlink", "fsync", "serialize_file"}


def calls(
    fn: Callable[[], Any],
    at: int = -1,
    stop: Callable[[], Any] = lambda: None,
    names: Collection[str] = CALLS,
) -> int:
    """Call a function, stop it before its call number `at`; returns how many calls there were."""
    seen = 0

    def look(frame, event, called):
        nonlocal seen
        if event == "c_call" and called.__name__ in names:
            seen += 1
            if seen - 1 == at:
                stop()

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        fn()
    finally:
        sys.setprofile(before)
    return seen


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
