"""What a program may ask of the machine it runs on."""

import ctypes
import platform

# Of malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
NEVER = -1


def keep_memory() -> bool:
    """Freed memory stays with this process, so that a step finds the pages of the step before.

    XLA asks for the temporaries of a program at every call, and glibc gives blocks of more than 32
    MiB back as soon as they are freed: on a CPU each step then waits for the system to map and
    clear every page again, which takes a fifth of a training step at 124 million parameters. After
    this the process keeps the most it ever held. It holds for all of the process, so it is for
    programs, not for libraries, to call: `bilevel align` and the other commands do. Call it before
    the first computation, as threads already running keep what they have.

    Returns:
        Whether it could be done: with glibc, so on most of Linux.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, as only the main one can grow to any size; no blocks apart; no trimming.
    wanted = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: NEVER}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
