"""Which method, and which step sizes: `solve` without a method, and `tune`."""

from bilevel.selection.front_door import solve
from bilevel.selection.tune import Tuned, tune

__all__ = ["Tuned", "solve", "tune"]
