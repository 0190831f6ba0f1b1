"""Multipliers of coupled lower constraints, for first-order methods."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import sets
from bilevel.lower import kkt
from bilevel.lower.kkt import Duals
from bilevel.problem import Problem
from bilevel.sets import AbstractSet
from bilevel.typing import Lower, Upper


def split(problem: Problem) -> tuple[AbstractSet, Problem]:
    """The simple part Y of the lower set, and the problem with the rest of it."""
    simple, rest = sets.split(problem.lower_set)
    return simple, problem.replace(lower_set=rest)


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
