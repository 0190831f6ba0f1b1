"""The problem, and whether the method is made for it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import keystr, tree_leaves_with_path

from bilevel.data import Data, Feed
from bilevel.driver.programs import traced
from bilevel.driver.validate.functions import check_arity, check_scalar, first_line, shape, trace
from bilevel.methods.base import AbstractMethod
from bilevel.problem import Batch, Problem


def check_problem(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem is of type {type(problem).__name__}; bl.Problem(upper, lower) is needed."
        )


def check_method(method: Any, problem: Any) -> None:
    check_problem(problem)
    if isinstance(method, type) and issubclass(method, AbstractMethod):
        raise TypeError(f"method is the class {method.__name__}; create one: {method.__name__}().")
    if not isinstance(method, AbstractMethod):
        raise TypeError(
            f"method is of type {type(method).__name__}; one of bilevel.methods is needed."
        )
    method.check(problem)


def check_each_loss(problem: Problem, x: Any, y: Any, batch: Batch) -> dict[str, Any]:
    """Both losses take (x, y, batch) and return one floating number; how they compute it."""
    traced = {}
    for level in ("upper", "lower"):
        loss = getattr(problem, level)
        check_arity(level, loss, ("x", "y", "batch"))
        name = f"Problem.{level}"
        traced[level], out = trace(name, loss, x, y, getattr(batch, level))
        check_scalar(name, out, "Reduce over the batch, for example with .mean().")
    return traced


def check_some_blocks(problem: Problem, state: Any, batch: Batch, data: Data) -> None:
    """Both losses take some of the blocks: as many rows of y as the batch has."""
    if data.blocks is None:
        return
    some = jax.tree.map(lambda leaf: leaf[: data.blocks], (state.y, batch))
    for level in ("upper", "lower"):
        loss, (y, part) = getattr(problem, level), some
        name = f"Problem.{level}, given {data.blocks} of {problem.blocks} blocks,"
        trace(name, loss, state.x, y, getattr(part, level))


def check_losses(problem: Problem, state: Any, batch: Batch) -> None:
    """Both losses take (x, y, batch), return one floating number, and depend on y."""
    x, y = state.x, state.y
    if problem.hypergradient is not None:
        check_hypergradient(problem.hypergradient, state, batch)
    if told := uncoupled(problem, x, y, check_each_loss(problem, x, y, batch)):
        raise ValueError(told)


def check_hypergradient(declared: Callable, state: Any, batch: Batch) -> None:
    """A declared hypergradient returns a tree like x."""
    name, x = "hypergradient", state.x
    check_arity(name, declared, ("x", "y", "batch"))
    _, out = trace(name, declared, x, state.y, Batch(batch.upper, batch.lower))
    if jax.tree.structure(out) != jax.tree.structure(x) or (
        jax.tree.map(jnp.shape, out) != jax.tree.map(jnp.shape, x)
    ):
        raise ValueError(
            f"hypergradient returned {shape(out)}; a tree like x is needed: {shape(x)}."
        )


def uncoupled(problem: Problem, x: Any, y: Any, traced: Mapping[str, Any]) -> str | None:
    """Why the two levels do not depend on each other, if so; takes what `check_each_loss` gave."""
    for level, jaxpr in traced.items():
        first = len(jax.tree.leaves(x))
        used = _used_inputs(jaxpr.jaxpr)
        declared = problem.hypergradient is not None or problem.lower_step is not None
        sees_y = any(used[first : first + len(jax.tree.leaves(y))])
        sees_y = sees_y or (level == "upper" and problem.upper_set.moves)
        if not sees_y and not declared:
            return (
                f"Problem.{level} does not depend on y, so the two levels are not coupled. "
                f"Check that {level}(x, y, batch) uses its second argument."
            )
        coupled = any(used[:first]) or declared or problem.lower_set.moves
        if level == "lower" and not coupled:
            return (
                "Problem.lower does not depend on x, so y*(x) is the same for every x. Are upper "
                "and lower swapped?"
            )
    return None


class Step(NamedTuple):
    """What is known of a step before it is compiled."""

    reports: list[str]
    jaxpr: ClosedJaxpr


def check_step(method: AbstractMethod, problem: Problem, state: Any, feed: Feed) -> Step:
    """A step fits the samples and returns a state like the one it was given.

    Returns the names of what a step reports, sorted, and the step as JAX traced it.
    """
    name = type(method).__name__
    mine = jax.eval_shape(method.init, problem, state.x, state.y)
    if jax.tree.structure(mine) != jax.tree.structure(state):
        raise ValueError(
            f"{name} cannot step from this state, a {type(state).__name__}; it needs one made by "
            f"{name}.init with the same updates."
        )

    fixed, treedef = jax.tree.flatten((problem, method))
    step = traced(problem, treedef)
    try:
        jaxpr, (new, info) = jax.make_jaxpr(step, return_shape=True)(fixed, feed, state)
    except Exception as error:
        raise ValueError(
            f"{name} cannot step from this state on these samples: {first_line(error)}"
        ) from error
    for (path, old), leaf in zip(tree_leaves_with_path(state), jax.tree.leaves(new), strict=True):
        if (jnp.shape(old), jnp.result_type(old)) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"a step of {name} turns state{keystr(path)} from {shape(old)} into "
                f"{shape(leaf)}; a declared hypergradient or lower_step must return trees like "
                "x and y."
            )
    return Step(sorted(info), jaxpr)


def _used_inputs(jaxpr) -> list[bool]:
    """Which inputs the output depends on, inside nested functions too."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
