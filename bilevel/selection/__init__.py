"""Which method, and which step sizes: `solve` without a method, `race` and `tune`."""

from bilevel.selection.front_door import solve
from bilevel.selection.race import Entrant, Race, race
from bilevel.selection.tune import Tuned, tune

__all__ = ["Entrant", "Race", "Tuned", "race", "solve", "tune"]
