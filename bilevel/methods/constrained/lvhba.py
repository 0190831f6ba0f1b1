"""LV-HBA: one gradient step on every variable of a penalised proximal Lagrangian.

Yao, Yu, Zeng, Zhang. "Constrained bi-level optimization: proximal Lagrangian value function
approach and Hessian-free algorithm". ICLR 2024, arXiv:2401.16164.
Differs from the paper: lower equations are also supported, with multipliers of either sign.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import NONNEGATIVE, nonnegative, positive
from bilevel.lower import kkt, lagrangian
from bilevel.lower.kkt import Duals
from bilevel.methods.base import AbstractMethod, LowerAssumption, Unsupported
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule
from bilevel.sets import Polyhedron
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class LVHBAState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower
    z: Lower  # θ: follows the minimiser of the proximal Lagrangian
    duals: Duals  # λ: follows its maximiser
    anchor: Duals  # proximal centre of λ; tends to the lower multipliers
    updates: tuple[Any, Any, Any]  # what the updates of (x, y), (z, λ) and the anchor remember


class LVHBA(AbstractMethod):
    """Single loop for a convex, not strongly convex, lower level with constraints; first order.

    With the proximal Lagrangian value function

        v(x, y, a) = min over z in Y, max over λ of
            g(x, z) + λᵀh(x, z) + ‖z − y‖²/(2c) − ‖λ − a‖²/(2c'),

    it minimises `f/C_k + g − v` over (x, y) in `C = {x in X, y in Y, h(x, y) <= 0}` and a in
    [0, r], by one projected step in (z, λ), then one in (x, y) and in a. A step takes two lower
    gradients in y, two in x and one upper gradient. The penalty C_k grows as `(k + 1)^p`, p < ½.
    The residual of the penalised problem is `O(K^(−(1−2p)/2))` and the gap g − v is `O(K^(−p))`;
    the error of x is about 1/C_k. Deterministic. Assumes g and h convex in y.

    The projection on C is joint in (x, y). It supports constraints that are jointly affine in
    (x, y): one inequality or any equations in closed form, several inequalities by a small
    quadratic program per step. `init` raises an error for other constraints.

    Attributes:
        x_update: one update for the pair (x, y), so that the projection is the nearest point.
        z_update: update of the pair (z, λ).
        dual_update: update of a; the same as that of x in the paper.
        proximal, dual_proximal: c and c'.
        radius: r, an upper bound on the multipliers.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    z_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    dual_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    penalty: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, -0.3), metadata=NONNEGATIVE
    )
    proximal: ScalarLike = nonnegative(1.0)
    dual_proximal: ScalarLike = nonnegative(1.0)
    radius: ScalarLike = positive(1e3)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    below: ClassVar[LowerAssumption] = LowerAssumption.CONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y, 2 λ"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "yao2024constrained"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=2, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> LVHBAState:
        """The state before the first step, with (x0, y0) projected on C.

        Raises:
            Unsupported: the constraints are not affine in (x, y) together.
        """
        x, y = _onto_both(problem, (trees.copy(x0), trees.copy(y0)))
        Y, coupled = lagrangian.split(problem)
        z, duals = Y.project(y), kkt.no_duals(coupled, x, y)
        updates = (
            self.x_update.init((x, y)),
            self.z_update.init((z, duals)),
            self.dual_update.init(duals),
        )
        return trees.copy(LVHBAState(jnp.zeros((), jnp.int32), x, y, z, duals, duals, updates))

    def step(
        self, problem: Problem, state: LVHBAState, batch: Batch
    ) -> tuple[LVHBAState, dict[str, Scalar]]:
        k, x, y, z, duals, anchor, (sx, sz, sa) = state
        Y, coupled = lagrangian.split(problem)
        at = (problem, x, y, batch.lower)
        pull, pull_dual = 1 / self.proximal, 1 / self.dual_proximal

        g_z = oracles.lower_grad(problem, x, z, batch.lower)
        along_z = trees.add(g_z, lagrangian.force(coupled, x, z, duals)[1])
        d_z = trees.axpy(pull, trees.sub(z, y), along_z)
        away = trees.sub(duals, anchor)
        d_dual = trees.axpy(pull_dual, away, trees.scale(-1.0, lagrangian.values(coupled, x, z)))
        (z, duals), sz = self.z_update.step((d_z, d_dual), sz, (z, duals), k)
        z, duals = Y.project(z), lagrangian.allowed(duals, self.radius)

        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        v_x = oracles.lower_grad_x(problem, x, z, batch.lower)
        v_x = trees.add(v_x, lagrangian.force(coupled, x, z, duals)[0])
        gap_x = trees.sub(oracles.lower_grad_x(*at), v_x)
        gap_y = trees.axpy(pull, trees.sub(z, y), oracles.lower_grad(*at))
        weight = 1 / self.penalty(k)
        d = trees.axpy(weight, f_x, gap_x), trees.axpy(weight, f_y, gap_y)
        d_anchor = trees.scale(pull_dual, trees.sub(anchor, duals))

        (new_x, new_y), sx = self.x_update.step(d, sx, (x, y), k)
        anchor, sa = self.dual_update.step(d_anchor, sa, anchor, k)
        x, y = _onto_both(problem, (new_x, new_y))
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(d[0]) / weight.astype(trees.widest(x)),
            "lower_grad_norm": trees.norm(along_z),
            "violation": coupled.lower_set.violation(y, x),
            "dual": trees.norm(anchor),
            "penalty": 1 / weight,
        }
        anchor = lagrangian.allowed(anchor, self.radius)
        return LVHBAState(k + 1, x, y, z, duals, anchor, (sx, sz, sa)), info


def _onto_both(problem: Problem, pair: tuple[Upper, Lower]) -> tuple[Upper, Lower]:
    """The nearest pair (x, y) with x in the upper set and y in the lower set at x."""
    flat, unravel = trees.ravel(pair)

    def values(v: Array) -> tuple[Array, Array]:
        x, y = unravel(v)
        both = problem.upper_set.constraints(x), problem.lower_set.constraints(y, x)
        h, e = (tuple(part) for part in zip(*both, strict=True))
        return _stacked(h, v), _stacked(e, v)

    _check_affine(values, flat, problem)
    zero = jnp.zeros_like(flat)
    (A, E), (b, d) = jax.jacfwd(values)(zero), values(zero)
    if not b.size and not d.size:
        return pair
    if b.size == 1 and not d.size:  # a half-space
        excess = jnp.maximum(A @ flat + b, 0)
        return unravel(flat - A.T @ (excess / jnp.sum(A * A)))
    if not b.size:
        return unravel(Polyhedron(E=E, d=-d).project(flat))
    if not d.size:
        return unravel(Polyhedron(A, -b).project(flat))
    return unravel(Polyhedron(A, -b, E, -d).project(flat))


def _check_affine(values, point: Array, problem: Problem) -> None:
    """Raise an error if the derivative of the constraints depends on the point."""

    def slope(v, dv):
        return jax.jvp(values, (v,), (dv,))[1]

    jaxpr = jax.make_jaxpr(slope)(point, point).jaxpr
    _, (reads_point, _) = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if reads_point:
        which = type(problem.lower_set).__name__
        raise Unsupported(
            f"LVHBA cannot solve this problem: its constraints (lower_set is a {which}) are not "
            "affine in (x, y) together, and LVHBA projects on them jointly. Methods that handle "
            "other coupled constraints: BLOCC, Barrier."
        )


def _stacked(tree, like: Array) -> Array:
    pieces = [jnp.ravel(leaf).astype(like.dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, like.dtype), *pieces])
