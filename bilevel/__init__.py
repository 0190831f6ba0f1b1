"""Bilevel optimization in JAX: minimise `f(x, y*(x))`, where `y*(x)` minimises `g(x, ·)`.

Most users call `solve`. `run` is the pure loop behind it, and `method.init` and `method.step` are
a single step. The building blocks are in the namespaces listed below.

Every name is imported at its first use (PEP 562), so that the command line can show its help and
parse its options without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bilevel._version import __version__
from bilevel.lazy import importer

if TYPE_CHECKING:
    from bilevel import apps as apps
    from bilevel import certificates as certificates
    from bilevel import estimators as estimators
    from bilevel import host as host
    from bilevel import hypergrad as hypergrad
    from bilevel import linear as linear
    from bilevel import lower as lower
    from bilevel import methods as methods
    from bilevel import oracles as oracles
    from bilevel import problems as problems
    from bilevel import report as report
    from bilevel import schedules as schedules
    from bilevel import sets as sets
    from bilevel import sharding as sharding
    from bilevel import trees as trees
    from bilevel import updates as updates
    from bilevel.data import Data
    from bilevel.driver import Best, Checkpoint, Outcome, Result, SolveError, Status, run
    from bilevel.lower import responses as responses
    from bilevel.problem import Batch, Draws, Problem, RepeatedBatch, Stacked
    from bilevel.selection import Race, Tuned, race, solve, tune

__all__ = [
    "Batch",
    "Best",
    "Checkpoint",
    "Data",
    "Draws",
    "Outcome",
    "Problem",
    "Race",
    "RepeatedBatch",
    "Result",
    "SolveError",
    "Stacked",
    "Status",
    "Tuned",
    "__version__",
    "apps",
    "certificates",
    "estimators",
    "hypergrad",
    "linear",
    "lower",
    "methods",
    "oracles",
    "problems",
    "race",
    "report",
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

_MODULES = frozenset({
    "apps", "certificates", "data", "driver", "estimators", "files", "global_search", "host",
    "hypergrad", "interop", "linear", "lower", "methods", "oracles", "problem", "problems",
    "report", "schedules", "selection", "sets", "sharding", "sklearn", "trees", "typing", "updates",
})  # fmt: skip
_import = importer(__name__, {
    "bilevel.data": ("Data",),
    "bilevel.driver": ("Best", "Checkpoint", "Outcome", "Result", "SolveError", "Status", "run"),
    "bilevel.lower": ("responses",),
    "bilevel.problem": ("Batch", "Draws", "Problem", "RepeatedBatch", "Stacked"),
    "bilevel.selection": ("Race", "Tuned", "race", "solve", "tune"),
})  # fmt: skip


def __getattr__(name: str) -> Any:
    return importlib.import_module(f"bilevel.{name}") if name in _MODULES else _import(name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
