"""Running a method: `run` (pure) and `solve` (with a person watching)."""

from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.checkpoint import Checkpoint
from bilevel.driver.result import Best, Outcome, Result, SolveError, Stats, Status
from bilevel.driver.run import run
from bilevel.driver.solve import solve
from bilevel.driver.tune import Tuned, tune

__all__ = [
    "Best",
    "Checkpoint",
    "FollowerCertificate",
    "Outcome",
    "Result",
    "SolveError",
    "Stats",
    "Status",
    "Tuned",
    "run",
    "solve",
    "tune",
]
