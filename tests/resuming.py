"""A run that is stopped and goes on from its checkpoint."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import bilevel as bl


def check_goes_on_bit_for_bit(problem, method, start: tuple, data: bl.Data, folder: Path) -> None:
    """Six steps, stopped after two, end where six steps without a stop end."""
    quiet: dict[str, Any] = {"steps": 6, "log_every": 2, "progress": False, "certify": False}
    settings = {"data": data, **quiet}
    whole = bl.solve(problem, method, *start, **settings)
    stop = lambda step, state, row: step >= 2  # noqa: E731
    saved = bl.Checkpoint(folder, seconds=0)
    stopped = bl.solve(problem, method, *start, checkpoint=saved, callbacks=[stop], **settings)
    assert stopped.stats.steps == 2
    again = bl.solve(problem, method, *start, checkpoint=saved, **settings)
    ends = (jax.tree.leaves((result.x, result.y)) for result in (whole, again))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)
