"""What MAID carries, between steps and within one."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bilevel import trees
from bilevel.methods.implicit.curvature import CurvatureEstimates
from bilevel.typing import Lower, RandomKey, Scalar, Upper


class Seen(NamedTuple):
    """What the last certified gradient was made of; the info of a step."""

    upper: Scalar
    hypergrad_norm: Scalar
    lower_grad_norm: Scalar
    bound: Scalar  # on ‖z − ∇l‖


class MAIDState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # within eps of y*(x)
    v: Lower  # adjoint
    z: Upper  # the inexact hypergradient x moved along last
    move: Upper  # the last move of x
    step_size: Scalar  # to be tried first
    eps: Scalar  # accuracy of y
    delta: Scalar  # accuracy of H v = ∇_y f
    sizes: CurvatureEstimates
    key: RandomKey
    lower_steps: Int[Array, ""]  # taken so far
    cg_steps: Int[Array, ""]  # likewise
    gradients: Int[Array, ""]  # of both levels with two products, taken so far besides
    exhausted: Bool[Array, ""]  # rounding allows no further step
    seen: Seen


class Round(NamedTuple):
    """One step in the making: a gradient and a line search at the accuracy of the round."""

    state: MAIDState
    trials: Int[Array, ""]  # J
    rounds: Int[Array, ""]
    started: Bool[Array, ""]  # this step has its first step size
    accepted: Bool[Array, ""]


class Gradient(NamedTuple):
    """A lower point, its adjoint, and what is certain about them."""

    mu: Scalar
    y: Lower
    v: Lower
    z: Upper  # ∇_x f − (∂²g/∂x∂y) v
    value: "Value"
    curvature: Scalar  # curvature in y: of f as published, else of φ = f − vᵀ∇_y g
    error_from_y: Scalar  # the part of the bound on ‖z − ∇l‖ that is due to y
    error_from_v: Scalar  # and to v
    stuck_y: Bool[Array, ""]  # rounding keeps y from its accuracy
    stuck_v: Bool[Array, ""]


class Value(NamedTuple):
    """`l` is within `value − below` and `value + above`, up to rounding."""

    value: Scalar
    below: Scalar
    above: Scalar
    noise: Scalar  # rounding


class Search(NamedTuple):
    """The line search of one round."""

    step_size: Scalar  # to be tried next; once found, the one accepted
    longest: Scalar  # step size that is not known to be too long
    x: Upper
    y: Lower
    move: Upper
    lower_steps: Int[Array, ""]
    failed: Int[Array, ""]  # trials
    tried: Int[Array, ""]
    found: Bool[Array, ""]
    blurred: Bool[Array, ""]  # a trial failed that a better accuracy may have saved


def norm_like(tree, like: Scalar) -> Scalar:
    return trees.norm(tree).astype(like.dtype)


def rounding(f: Scalar, like: Scalar) -> Scalar:
    return 4 * jnp.finfo(like.dtype).eps * jnp.abs(f.astype(like.dtype))


def as_like(value, like: Scalar) -> Scalar:
    return jnp.asarray(value, like.dtype)


def count(value) -> Int[Array, ""]:
    return jnp.asarray(value, jnp.int32)
