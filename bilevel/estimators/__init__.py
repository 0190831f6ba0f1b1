"""Direction estimators, which turn a stream of noisy evaluations into a direction."""

from bilevel.estimators.base import AbstractEstimator
from bilevel.estimators.blocks import MSVR, Drawn, SparseSTORM
from bilevel.estimators.difference import SPIDER, STORM, Anchored, Path, follow
from bilevel.estimators.mean import mean_over
from bilevel.estimators.plain import SGD, MovingAverage
from bilevel.estimators.refresh import ENDLESS, Refresh, most_batches
from bilevel.estimators.table import SAGA, Slot, Table

__all__ = [
    "ENDLESS",
    "MSVR",
    "SAGA",
    "SGD",
    "SPIDER",
    "STORM",
    "AbstractEstimator",
    "Anchored",
    "Drawn",
    "MovingAverage",
    "Path",
    "Refresh",
    "Slot",
    "SparseSTORM",
    "Table",
    "follow",
    "mean_over",
    "most_batches",
]
