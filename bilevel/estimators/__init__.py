"""Direction estimators: from a stream of noisy evaluations to a direction."""

from bilevel.estimators.base import AbstractEstimator
from bilevel.estimators.difference import SPIDER, STORM, Anchored
from bilevel.estimators.plain import SGD, MovingAverage
from bilevel.estimators.table import SAGA, Slot

__all__ = [
    "SAGA",
    "SGD",
    "SPIDER",
    "STORM",
    "AbstractEstimator",
    "Anchored",
    "MovingAverage",
    "Slot",
]
