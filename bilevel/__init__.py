"""Bilevel optimization in JAX: minimise `f(x, y*(x))`, where `y*(x)` minimises `g(x, ·)`.

`solve` is the front door, `run` the pure loop, `method.init` and `method.step` one step; the
blocks they are made of stand in the namespaces below.
"""

from bilevel import certificates as certificates
from bilevel import estimators as estimators
from bilevel import host as host
from bilevel import hypergrad as hypergrad
from bilevel import linear as linear
from bilevel import lower as lower
from bilevel import methods as methods
from bilevel import oracles as oracles
from bilevel import schedules as schedules
from bilevel import sets as sets
from bilevel import sharding as sharding
from bilevel import trees as trees
from bilevel import updates as updates
from bilevel._version import __version__
from bilevel.data import Data
from bilevel.driver import Best, Checkpoint, Outcome, Result, SolveError, Status, run
from bilevel.lower import responses as responses
from bilevel.problem import Batch, Draws, Problem, RepeatedBatch, Stacked
from bilevel.selection import Tuned, solve, tune

__all__ = [
    "Batch",
    "Best",
    "Checkpoint",
    "Data",
    "Draws",
    "Outcome",
    "Problem",
    "RepeatedBatch",
    "Result",
    "SolveError",
    "Stacked",
    "Status",
    "Tuned",
    "__version__",
    "certificates",
    "estimators",
    "hypergrad",
    "linear",
    "lower",
    "methods",
    "oracles",
    "responses",
    "run",
    "schedules",
    "sets",
    "sharding",
    "solve",
    "trees",
    "tune",
    "updates",
]
