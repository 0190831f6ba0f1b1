"""Lower constraints without a simple projection, as a penalty in the lower loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import sets, trees
from bilevel.problem import Problem
from bilevel.typing import PyTree, Scalar, ScalarLike


class Infeasibility(eqx.Module):
    """The lower loss `g(x, y) + weight ‖[h(x, y)]_+‖²`; equations count with both signs."""

    problem: Problem
    weight: Array

    def __call__(self, x, y, batch) -> Scalar:
        g = self.problem.lower(x, y, batch)
        excess = _excess(self.problem.lower_set, x, y)
        return g + (self.weight * trees.dot(excess, excess)).astype(g.dtype)


def penalised(problem: Problem, weight: ScalarLike) -> Problem:
    """The problem with only the simple part of its lower set, and the rest as a penalty.

    If the lower set is simple, the problem is returned unchanged.
    """
    simple, rest = sets.split(problem.lower_set)
    if isinstance(rest, sets.Free):
        return problem
    loss = Infeasibility(problem.replace(lower_set=rest), jnp.asarray(weight))
    return problem.replace(lower=loss, lower_set=simple)


def infeasibility(problem: Problem, x: PyTree, y: PyTree) -> Scalar:
    """`‖[h(x, y)]_+‖` over the penalised part of the lower set.

    At the minimiser of the penalised lower loss, the norm of the multipliers is `2 weight` times
    this value.
    """
    return trees.norm(_excess(sets.split(problem.lower_set).rest, x, y))


def _excess(a_set: sets.AbstractSet, x: PyTree, y: PyTree) -> PyTree:
    """`[h]_+` and the values of equations."""
    inequalities, equalities = a_set.constraints(y, x)
    return jax.tree.map(jax.nn.relu, inequalities), equalities
