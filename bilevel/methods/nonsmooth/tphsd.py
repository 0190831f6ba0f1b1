"""TPHSD: subgradient steps tangent to the lower stationary points, with restoration steps.

Xiao, Hu, Liu, Toh. "A Hybrid Subgradient Method for Nonsmooth Nonconvex Bilevel Optimization".
2025, arXiv:2505.22040.
A reconstruction: the problem, its two phases and the conditions on the steps are the paper's. The
paper claims first-order information and adaptive constants. This code uses products with second
derivatives of g, and fixed constants.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import NONNEGATIVE, count, nonnegative
from bilevel.methods.base import AbstractMethod, LowerAssumption
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update

Pair = tuple[Upper, Lower]  # shaped like z = (x, y)


class TPHSDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower
    momentum: Pair  # follows a subgradient of f
    w: Lower  # least-squares multiplier of ∇_y g = 0
    updates: tuple[Any, Any]  # memories of the x and y updates


class TPHSD(AbstractMethod):
    """Two phases for `min f(x, y)` over the points where `∇_y g = 0`: f nonsmooth, g nonconvex.

    While `c = ∇_y g` is small, z = (x, y) moves along `m − J w + β J c`. Here m is a running mean
    of subgradients of f, `J = [∂²g/∂x∂y; ∂²g/∂y²]` the derivative of c, and w its least-squares
    multiplier: a tangent step and a normal correction. When `‖c‖` exceeds a bound, descent steps
    on `½ ‖c‖²` with a line search reduce it to half of the bound. A step takes one subgradient,
    two products with J and one with its transpose. Needs J of full rank on the feasible set. This
    allows folds, where ∂²g/∂y² alone is singular. Limit points are stationary; there is no rate.
    Lower maxima and saddle points are also feasible. A reconstruction, with second derivatives and
    fixed constants, which the paper claims to avoid.

    Attributes:
        x_update, y_update: use the same for both, with steps `η_k`, `Σ η_k = ∞`, slower than the
            momentum.
        momentum: `θ_k → 0` with `η_k/θ_k → 0` and `θ_k²/η_k → 0`.
        multiplier_step: τ, at most `1/‖J‖²`.
        correction: β.
        tol: bound on `‖∇_y g‖`; above it a restoration starts.
        max_restore: largest number of descent steps of one restoration.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.5, 0.8)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.5, 0.8)
    )
    momentum: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 0.5), metadata=NONNEGATIVE
    )
    multiplier_step: ScalarLike = nonnegative(0.1)
    correction: ScalarLike = nonnegative(1.0)
    tol: ScalarLike = nonnegative(0.3)
    max_restore: int = count(1000, least=0)

    supports: ClassVar[frozenset[Structure]] = frozenset()
    below: ClassVar[LowerAssumption] = LowerAssumption.NONCONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "2 x, 3 y"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "xiao2025hybrid"
    status: ClassVar[str] = "experimental"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of a tangent step, without restorations, whose length is not known."""
        return Price(upper_grad=1, lower_grad=1, hvp=4, cross=3, cross_transposed=1)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TPHSDState:
        x, y = trees.copy(x0), trees.copy(y0)
        zeros = trees.zeros_like(x), trees.zeros_like(y)
        updates = self.x_update.init(x), self.y_update.init(y)
        return TPHSDState(jnp.zeros((), jnp.int32), x, y, zeros, trees.zeros_like(y), updates)

    def step(
        self, problem: Problem, state: TPHSDState, batch: Batch
    ) -> tuple[TPHSDState, dict[str, Scalar]]:
        c = oracles.lower_grad(problem, state.x, state.y, batch.lower)
        size = trees.norm(c)
        far = size > jnp.asarray(self.tol, size.dtype)
        new, (value, tangent) = jax.lax.cond(
            far,
            lambda: self._restore(problem, state, batch),
            lambda: self._tangent(problem, state, c, batch),
        )
        info = {
            "upper": value,
            "hypergrad_norm": tangent,
            "lower_grad_norm": size,
            "restored": far.astype(size.dtype),
        }
        return new, info

    def _tangent(self, problem: Problem, state: TPHSDState, c: Lower, batch: Batch):
        k, x, y, m, w, (sx, sy) = state
        J, J_T = _jacobian(problem, x, y, batch)
        value, *d = oracles.upper_grads(problem, x, y, batch.upper)
        m = trees.lerp(m, tuple(d), self.momentum(k))
        w = trees.axpy(self.multiplier_step, J_T(trees.sub(m, J(w))), w)
        tangent = trees.sub(m, J(w))
        d_x, d_y = trees.axpy(self.correction, J(c), tangent)
        x, sx = self.x_update.step(d_x, sx, x, k)
        y, sy = self.y_update.step(d_y, sy, y, k)
        reported = value.astype(trees.widest((x, y))), trees.norm(tangent)
        return TPHSDState(k + 1, x, y, m, w, (sx, sy)), reported

    def _restore(self, problem: Problem, state: TPHSDState, batch: Batch):
        """Armijo descent on `½ ‖c‖²` until `‖c‖ ≤ tol/2`; resets the momentum."""

        def square(z):
            x, y = z
            c = oracles.lower_grad(problem, x, y, batch.lower)
            return trees.dot(c, c) / 2, c

        def descend(at):
            (x, y), value, c, a, n = at
            J, _ = _jacobian(problem, x, y, batch)
            z, d = (x, y), J(c)
            slope = trees.dot(d, d)

            def tried(a):
                new = trees.axpy(-a, d, z)
                value, c = square(new)
                return a, new, value, c

            def too_long(at):
                a, _, new_value, _ = at
                enough = new_value <= value - 0.1 * a * slope
                return ~enough & (a > jnp.finfo(a.dtype).tiny)

            a, z, value, c = jax.lax.while_loop(too_long, lambda at: tried(at[0] / 2), tried(2 * a))
            return z, value, c, a, n + 1

        def unfinished(at):
            _, value, _, a, n = at
            goal = (jnp.asarray(self.tol, value.dtype) / 2) ** 2 / 2
            return (value > goal) & (n < self.max_restore) & (a > jnp.finfo(a.dtype).tiny)

        z = state.x, state.y
        value, c = square(z)
        one, none = jnp.ones_like(value), jnp.zeros((), jnp.int32)
        (x, y), *_ = jax.lax.while_loop(unfinished, descend, (z, value, c, one, none))
        m, dtype = trees.zeros_like(state.momentum), trees.widest((x, y))
        f = oracles.upper_value(problem, x, y, batch.upper).astype(dtype)
        reported = f, jnp.full((), jnp.nan, trees.norm(m).dtype)
        return TPHSDState(state.k + 1, x, y, m, state.w, state.updates), reported


def _jacobian(problem: Problem, x: Upper, y: Lower, batch: Batch):
    """`J v = ∇(vᵀ ∇_y g)` in z = (x, y), and its transpose."""

    def J(v: Lower) -> Pair:
        cross = oracles.cross(problem, x, y, v, batch.lower)
        return cross, oracles.hvp(problem, x, y, v, batch.lower)

    def transposed(u: Pair) -> Lower:
        u_x, u_y = u
        along_x = oracles.cross_transposed(problem, x, y, u_x, batch.lower)
        return trees.add(along_x, oracles.hvp(problem, x, y, u_y, batch.lower))

    return J, transposed
