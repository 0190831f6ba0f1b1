"""Running a method: `run` (pure) and `drive` (with a person watching)."""

from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.checkpoint import Checkpoint
from bilevel.driver.prepare import Options
from bilevel.driver.result import Best, Outcome, Result, SolveError, Stats, Status
from bilevel.driver.run import run
from bilevel.driver.solve import drive

__all__ = [
    "Best",
    "Checkpoint",
    "FollowerCertificate",
    "Options",
    "Outcome",
    "Result",
    "SolveError",
    "Stats",
    "Status",
    "drive",
    "run",
]
