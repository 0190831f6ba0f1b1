"""Multipliers of coupled lower constraints, for first-order methods."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.lower import kkt
from bilevel.lower.kkt import Duals
from bilevel.problem import Problem
from bilevel.sets import AbstractSet, Free, Intersection, Polyhedron
from bilevel.typing import Lower, Upper


def split(problem: Problem) -> tuple[AbstractSet, Problem]:
    """The part Y of the lower set with a simple projection, and the problem with the rest of it.

    The rest, `h(x, y) <= 0` and `e(x, y) = 0`, is what multipliers are for.
    """
    whole = problem.lower_set
    members = whole.sets if isinstance(whole, Intersection) else (whole,)
    simple = next(filter(_simple, members), Free())
    rest = Intersection(tuple(member for member in members if member is not simple))
    return simple, problem.replace(lower_set=rest)


def _simple(a_set: AbstractSet) -> bool:
    return a_set.projectable and not a_set.moves and not isinstance(a_set, Free | Polyhedron)


def values(problem: Problem, x: Upper, y: Lower) -> Duals:
    """`h` and `e`, the slope of the Lagrangian in its multipliers, in their places."""
    return Duals(*kkt.constraints(problem, x, y))


def force(problem: Problem, x: Upper, y: Lower, duals: Duals) -> tuple[Upper, Lower]:
    """`λᵀ∂h + νᵀ∂e`, in x and in y."""
    return jax.grad(kkt.weighed, argnums=(1, 2))(problem, x, y, duals)


def allowed(duals: Duals, radius: ScalarLike = float("inf")) -> Duals:
    """The nearest multipliers with `0 <= λ <= radius` and `|ν| <= radius`."""
    signed, free = duals
    most = jnp.asarray(radius, signed.dtype)
    return Duals(jnp.clip(signed, 0, most), jnp.clip(free, -most, most))
