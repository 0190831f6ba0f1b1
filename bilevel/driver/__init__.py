"""Running a method: `run` (pure), `drive` (with a person watching); `train`, one level alone."""

from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.checkpoint import Checkpoint
from bilevel.driver.prepare import Options
from bilevel.driver.result import Best, Outcome, Result, SolveError, Stats, Status
from bilevel.driver.run import run
from bilevel.driver.solve import drive
from bilevel.driver.train import train

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
    "train",
]
