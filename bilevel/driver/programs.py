"""Compiled programs of the last few problems, and no others.

`jax.jit` keeps what it compiled for as long as the process lives, and with it the losses: 6 MB for
every loss function written afresh, in a loop or a notebook. A `jit` of its own for each problem is
given up with it.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

from bilevel.problem import Problem

KEPT = 4  # problems

_programs: OrderedDict[Any, dict[Hashable, Callable]] = OrderedDict()


def program(problem: Problem, fn: Callable, *fixed: Hashable, **jit: Any) -> Callable:
    """`jax.jit(fn)` with its first arguments fixed, the same one for problems of one structure.

    One that is compiled with other `compiler_options` is another.
    """
    structure = jax.tree.structure(problem)
    mine = _programs.setdefault(structure, {})
    _programs.move_to_end(structure)
    while len(_programs) > KEPT:
        _programs.popitem(last=False)
    key = fn, fixed, str(jit.get("compiler_options"))
    if key not in mine:
        mine[key] = jax.jit(functools.partial(fn, *fixed), **jit)
    return mine[key]


def traced(problem: Problem, treedef) -> Callable:
    """A step `(fixed, feed, state) -> (state, info)`; whoever traces it again finds the trace.

    `fixed` are the leaves of problem and method, and `treedef` is their structure.
    """
    return program(problem, _step, treedef)


def _step(treedef, fixed, feed, state):
    problem, method = jax.tree.unflatten(treedef, fixed)
    return method.step(problem, state, feed.batch(state.k))
