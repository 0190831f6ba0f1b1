"""Where a run saves its state."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.driver.checkpoint import Checkpoint
from bilevel.fields import shown


def as_checkpoint(value: Any) -> Checkpoint:
    """A folder, or a `Checkpoint` whose fields make sense.

    Raises:
        TypeError, ValueError: the folder is no path of this machine, or a number is out of range.
    """
    checkpoint = value if isinstance(value, Checkpoint) else Checkpoint(value)
    folder, seconds, keep = checkpoint
    if not isinstance(folder, str | Path):
        raise TypeError(
            f"checkpoint is {shown(folder)}; a folder or bl.Checkpoint(folder, ...) is needed."
        )
    if not str(folder).strip() or "\0" in str(folder):
        raise ValueError(f"checkpoint is {shown(str(folder))}; the name of a folder is needed.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(folder)):
        raise ValueError(
            f"checkpoint is {shown(str(folder))}, an address; a folder of this machine is needed. "
            "Mount the storage, and give the folder where it is seen."
        )
    whole = isinstance(keep, int | np.integer) and not isinstance(keep, bool)
    if not whole or keep < 1:
        raise ValueError(
            f"Checkpoint.keep is {shown(keep)}; a whole number of at least 1 is needed."
        )
    number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not number or not seconds >= 0 or math.isinf(seconds):
        raise ValueError(
            f"Checkpoint.seconds is {shown(seconds)}; a number of at least 0 is needed."
        )
    return checkpoint
