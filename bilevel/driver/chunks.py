"""The compiled loop of one method on one problem, called chunk by chunk."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import sharding, trees
from bilevel.data import Feed
from bilevel.driver.convolutions import unrolled
from bilevel.driver.programs import program, traced
from bilevel.methods.base import AbstractMethod
from bilevel.problem import Problem


class Loop:
    """The compiled loop of one method on one problem, called chunk by chunk.

    Arguments are flattened once, and what a chunk reports comes back as one array: a short chunk
    should cost the host little more than a dispatch and a read.
    """

    def __init__(self, problem: Problem, method: AbstractMethod, reports, places, little=None):
        self._fixed, treedef = jax.tree.flatten((problem, method))
        self._names = reports
        fixed = treedef, places, len(reports)
        how = {"donate_argnums": 3, "compiler_options": little}
        self._advance = program(problem, _advance, *fixed, **how)

    def __call__(self, state: Any, feed: Feed, n: int) -> tuple[Any, dict[str, float], bool]:
        """The state n steps on, what the last step reported, and whether all is finite.

        The state given is donated; it comes back unchanged when the steps left the finite numbers.
        """
        state, report = self._advance(self._fixed, feed, np.int32(n), state)
        *values, finite = np.asarray(report)
        return state, dict(zip(self._names, map(float, values), strict=True)), bool(finite)


class StepByStep:
    """The same without a loop of XLA: steps are dispatched one by one.

    Every chunk is made of the same compiled step, so that the result does not depend on where
    chunks end. For steps with convolutions on a CPU.
    """

    def __init__(self, problem: Problem, method: AbstractMethod, reports, places, little=None):
        self._fixed, treedef = jax.tree.flatten((problem, method))
        self._names = reports
        how = {"donate_argnums": 2, "compiler_options": little}
        self._step = program(problem, _step, treedef, places, **how)

    def __call__(self, state: Any, feed: Feed, n: int) -> tuple[Any, dict[str, float], bool]:
        """As `Loop`; a chunk of no steps compiles, by a step that is thrown away."""
        first, report = state, None
        state = trees.copy(state)
        for _ in range(max(n, 1)):
            state, report = self._step(self._fixed, feed, state)
        if n == 0:
            return first, {}, True
        finite = bool(_all_finite((state, report)))
        told = dict(zip(self._names, map(float, np.asarray(report)), strict=True))
        return state if finite else first, told, finite


_all_finite = jax.jit(trees.all_finite)


def _step(treedef, places, fixed, feed: Feed, state):
    problem, method = jax.tree.unflatten(treedef, fixed)

    def one(feed, state):
        state, info = method.step(problem, state, feed.batch(state.k))
        return state, _stacked(info)

    state, report = unrolled(one)(feed, state)
    return sharding.constrain(state, places), sharding.constrain_everywhere(report, places)


def _advance(treedef, places, reports: int, fixed, feed: Feed, n, state):
    problem, _ = jax.tree.unflatten(treedef, fixed)

    def one(state):
        state, info = traced(problem, treedef)(fixed, feed, state)
        return sharding.constrain(state, places), _stacked(info)

    start = state, jnp.zeros(reports, float)
    new, report = jax.lax.fori_loop(0, n, lambda _, carry: one(carry[0]), start)
    finite = trees.all_finite((new, report))
    report = jnp.append(report, finite.astype(report.dtype))
    new = sharding.constrain(trees.where(finite, new, state), places)
    return new, sharding.constrain_everywhere(report, places)


def _stacked(info: Mapping[str, Any]) -> Array:
    """What a step reports, by name, as one vector."""
    return jnp.array([jnp.asarray(info[name]).astype(float) for name in sorted(info)], float)
