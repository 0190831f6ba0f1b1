"""RSVRB: many lower problems, a few per step, with every factor of the hypergradient tracked.

Guo, Hu, Zhang, Yang. "Randomized stochastic variance-reduced methods for multi-task stochastic
bilevel optimization". 2021, arXiv:2105.02266.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from bilevel import oracles, trees
from bilevel.estimators import SparseSTORM
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.blocks import blocks
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, first_one, horizon
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Factors(NamedTuple):
    """The factors of the hypergradients of blocks; leading axes are blocks."""

    U: blocks.Rows  # ∇_x f_b
    V: blocks.Rows  # ∇_y f_b
    M: Float[Array, "blocks n m"]  # ∂²g_b/∂x∂y
    H: Float[Array, "blocks m m"]  # ∂²g_b/∂y²
    Z: blocks.Rows  # ∇_y g_b

    def hypergradient(self, drawn: Array) -> Upper:
        """The mean of `U_b − M_b H_b⁻¹ V_b` over the drawn blocks."""
        U, V, M, H, _ = blocks.take(self, drawn)
        product = jax.vmap(blocks.multiply)(M, blocks.solve(H, V), U)
        return trees.map(lambda leaf: leaf.mean(axis=0), trees.sub(U, product))


class RSVRBState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # row b follows y_b*(x)
    h: Upper  # direction of x
    tracked: Factors
    before: tuple[Upper, blocks.Rows]  # x and y of the previous step
    key: RandomKey  # draws the second set of blocks
    updates: tuple[Any, Any]  # memories of the x and y updates


class RSVRB(AbstractMethod):
    """Many lower problems, a few per step: every factor of each hypergradient is tracked.

    A step draws I of m blocks and tracks `∇_x f_b, ∇_y f_b, ∂²g_b/∂x∂y, ∂²g_b/∂y², ∇_y g_b` by a
    sparse STORM, which scales the drawn blocks by m/I and shrinks the others. Then x moves along a
    STORM average of `U_b − M_b H_b⁻¹ V_b` over a second, independent draw of I blocks, and every
    y_b along its Z_b. A step evaluates two points on the same sample. This takes two upper and
    lower gradients, two dense Hessians and two dense cross derivatives per block, so the y of a
    block should have few entries. Use it with `Problem(..., blocks=m)` and `Data(..., blocks=I)`;
    without them there is one block, the whole y, and the method is SVRB. Assumes lower losses
    strongly convex in y and sample losses with Lipschitz derivatives. With x and y steps of order
    ε^(1/2) and weights of order ε, a mean squared hypergradient of ε takes at most `m ε^(−3/2)`
    samples.

    Attributes:
        weight: b, weight of the trackers and of the average along which x moves.
        convexity: μ, lower bound of the eigenvalues of every H_b. Use the strong convexity of the
            lower losses; the default only keeps H_b invertible.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 3)
    )
    weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 2 / 3), metadata=NONNEGATIVE
    )
    convexity: ScalarLike = nonnegative(1e-3)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.BLOCKS})
    memory: ClassVar[str] = "3 x, 2 y; a block: x, 2 y, x × y, y × y"
    rate: ClassVar[str] = "m ε^(−3/2)"
    paper: ClassVar[str] = "guo2021randomized"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/3)`, weights `K^(−2/3)`, half of μ as floor."""
        return cls(
            horizon(0.2 / constants.hyper_L, 1 / 3, steps),
            horizon(1 / constants.L, 1 / 3, steps),
            horizon(1.0, 2 / 3, steps),
            constants.mu / 2,
        )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=2, lower_grad=2, dense_hessian=2, dense_cross=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> RSVRBState:
        many = blocks.Blocks.of(problem)
        x, y, h = trees.copy(x0), trees.copy(y0), trees.zeros_like(x0)
        rows = many.stack(y)
        H = blocks.identities(rows)
        tracked = Factors(
            U=trees.map(lambda leaf: jnp.stack(many.m * [leaf]), h),
            V=trees.zeros_like(rows),
            M=jnp.zeros_like(H, shape=(many.m, trees.size(x), H.shape[1])),
            H=H,
            Z=trees.zeros_like(rows),
        )
        before = trees.copy(x), trees.copy(rows)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        updates = self.x_update.init(x), self.y_update.init(y)
        return RSVRBState(jnp.zeros((), jnp.int32), x, y, h, tracked, before, key, updates)

    def step(
        self, problem: Problem, state: RSVRBState, batch: Batch
    ) -> tuple[RSVRBState, dict[str, Scalar]]:
        k, x, y, h, last, (x_old, y_old), key, (sx, sy) = state
        many = blocks.Blocks.of(problem)
        problem, rows, drawn = many.problem, many.stack(y), many.drawn(batch)

        def factors(x, y) -> tuple[Scalar, Factors]:
            y = blocks.take(y, drawn)
            value, U, V = blocks.upper_grads(problem, x, y, batch.upper, many.m)
            M = oracles.block_crosses(problem, x, y, batch.lower)
            H = oracles.block_hessians(problem, x, y, batch.lower)
            return value, Factors(U, V, M, H, oracles.lower_grad(problem, x, y, batch.lower))

        # The factors at both points, on the same blocks and samples.
        (value, new), (_, old) = factors(x, rows), factors(x_old, y_old)
        sparse = SparseSTORM(many.m, self.weight)
        tracked = sparse.combine(last, new, old, drawn, k)
        tracked = tracked._replace(H=blocks.floor_eigenvalues(tracked.H, self.convexity))

        # h ← G(T) + (1 − b)(h − G(T_old)), on a second draw of blocks
        key, now = jax.random.split(key)
        again = blocks.draw(now, many.m, drawn.size)
        G, G_old = tracked.hypergradient(again), last.hypergradient(again)
        h = trees.axpy(1 - first_one(self.weight, k), trees.sub(h, G_old), G)

        before = x, rows
        x, sx = self.x_update.step(h, sx, x, k)
        y, sy = self.y_update.step(many.unstack(tracked.Z), sy, y, k)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(h),
            "lower_grad_norm": trees.norm(tracked.Z),
        }
        x = problem.upper_set.project(x)
        return RSVRBState(k + 1, x, y, h, tracked, before, key, (sx, sy)), info
