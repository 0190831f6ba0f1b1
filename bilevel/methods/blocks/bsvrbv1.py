"""BSVRB-v1: many lower problems, a few per step, with tracked Hessian matrices.

Hu, Qiu, Guo, Zhang, Yang. "Blockwise stochastic variance-reduced methods with parallel speedup
for multi-block bilevel optimization". ICML 2023, arXiv:2305.18730.
Differs from the released code: the floor raises the small eigenvalues (the code rescales the whole
matrix); the trackers of a block start at its first evaluation; x is projected on `upper_set` if
there is one.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from bilevel import oracles, trees
from bilevel.estimators import MSVR
from bilevel.fields import NONNEGATIVE, nonnegative, optional
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.blocks import blocks
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, first_one, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Before(NamedTuple):
    """The point of the previous step; leading axes are blocks."""

    x: Upper
    y: blocks.Rows
    H: Float[Array, "blocks m m"] | None  # the matrices used for x, if not the newest


class BSVRBv1State(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # row b follows y_b*(x)
    h: Upper  # direction of x
    s: blocks.Rows  # row b follows ∇_y g_b
    H: Float[Array, "blocks m m"]  # follows ∂²g_b/∂y², eigenvalues above the floor
    seen: Bool[Array, " blocks"]  # blocks drawn in an earlier step
    before: Before
    updates: tuple[Any, Any]  # memories of the x and y updates


class BSVRBv1(AbstractMethod):
    """Many lower problems, a few per step: variance-reduced gradients and Hessian matrices.

    A step draws I of m blocks. It tracks their `∇_y g_b` and `∂²g_b/∂y²` by MSVR and moves x along
    a STORM average of the mean over them of `∇_x f_b − (∂²g_b/∂x∂y) H_b⁻¹ ∇_y f_b`. Every y_b
    moves along its last tracked gradient. A step evaluates two points on the same sample. This
    takes two upper and lower gradients, two cross products and two dense Hessians per block, so
    the y of a block should have few entries (`BSVRBv2` has no matrices). Use it with
    `Problem(..., blocks=m)` and `Data(..., blocks=I)`; without them there is one block, the whole
    y. Assumes lower losses strongly convex in y and sample losses with Lipschitz derivatives. With
    x and y steps of order ε^(1/2) and weights of order ε, at most `m ε^(−3/2)/I` steps give a mean
    squared hypergradient of ε.

    Attributes:
        weight: a of the MSVR trackers.
        x_weight: weight of the average along which x moves.
        correction: γ of the trackers; if `None`, the value of the theory, which needs a < 1.
        convexity: μ, lower bound of the eigenvalues of every H_b. Use the strong convexity of the
            lower losses; the default only keeps H_b invertible.
        stale: compute the hypergradient with the Hessians of the previous step, as the released
            code does.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 3)
    )
    weight: AbstractSchedule = eqx.field(
        converter=as_schedule,
        default_factory=lambda: Polynomial(1.0, 2 / 3, 2.0),
        metadata=NONNEGATIVE,
    )
    x_weight: AbstractSchedule = eqx.field(
        converter=as_schedule,
        default_factory=lambda: Polynomial(1.0, 2 / 3, 2.0),
        metadata=NONNEGATIVE,
    )
    correction: AbstractSchedule | None = nonnegative(None, converter=optional(as_schedule))
    convexity: ScalarLike = nonnegative(1e-3)
    stale: bool = eqx.field(static=True, default=False)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.BLOCKS})
    memory: ClassVar[str] = "3 x, 3 y; a block: y × y"
    rate: ClassVar[str] = "m ε^(−3/2)"
    paper: ClassVar[str] = "hu2023blockwise"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/3)`, weights `K^(−2/3)`, half of μ as floor."""
        weight = Polynomial(1.0, 2 / 3, 2.0) if steps is None else horizon(0.9, 2 / 3, steps)
        return cls(
            horizon(0.2 / constants.hyper_L, 1 / 3, steps),
            horizon(1 / constants.L, 1 / 3, steps),
            weight,
            weight,
            convexity=constants.mu / 2,
        )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=2, lower_grad=2, cross=2, dense_hessian=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BSVRBv1State:
        many = blocks.Blocks.of(problem)
        x, y, h = trees.copy(x0), trees.copy(y0), trees.zeros_like(x0)
        rows = many.stack(y)
        H = blocks.identities(rows)
        before = Before(trees.copy(x), trees.copy(rows), trees.copy(H) if self.stale else None)
        unseen = jnp.zeros(many.m, bool)
        updates = self.x_update.init(x), self.y_update.init(y)
        k, s = jnp.zeros((), jnp.int32), trees.zeros_like(rows)
        return BSVRBv1State(k, x, y, h, s, H, unseen, before, updates)

    def step(
        self, problem: Problem, state: BSVRBv1State, batch: Batch
    ) -> tuple[BSVRBv1State, dict[str, Scalar]]:
        k, x, y, h, s, H, seen, before, (sx, sy) = state
        many = blocks.Blocks.of(problem)
        problem, rows, drawn = many.problem, many.stack(y), many.drawn(batch)
        here, there = (x, blocks.take(rows, drawn)), (before.x, blocks.take(before.y, drawn))

        def factors(x, y):
            return (
                oracles.lower_grad(problem, x, y, batch.lower),
                oracles.block_hessians(problem, x, y, batch.lower),
            )

        # s_b ~ ∇_y g_b and H_b ~ ∂²g_b/∂y² of the drawn blocks
        msvr = MSVR(many.m, self.weight, self.correction)
        s, tracked = msvr.combine((s, H), factors(*here), factors(*there), drawn, k, seen)
        new = blocks.floor_eigenvalues(tracked[drawn], self.convexity)
        H, old, known = H.at[drawn].set(new), H[drawn], seen[drawn]
        if before.H is not None:  # stale
            new, old = blocks.choose(known, old, new), before.H[drawn]
        old = blocks.choose(known, old, new)

        def hypergradient(x, y, H):
            value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
            c = blocks.solve(H, f_y)  # H_b⁻¹ ∇_y f_b / I, as f is the mean over the I blocks
            return value, trees.sub(f_x, oracles.cross(problem, x, y, c, batch.lower))

        # h ← G(w) + (1 − β)(h − G(w_old)), the same blocks and samples at both points
        (value, G), (_, G_old) = hypergradient(*here, new), hypergradient(*there, old)
        h = trees.axpy(1 - first_one(self.x_weight, k), trees.sub(h, G_old), G)

        before = Before(x, rows, H.at[drawn].set(new) if self.stale else None)
        x, sx = self.x_update.step(h, sx, x, k)
        y, sy = self.y_update.step(many.unstack(s), sy, y, k)
        x, seen = problem.upper_set.project(x), seen.at[drawn].set(True)
        info = {"upper": value, "hypergrad_norm": trees.norm(h), "lower_grad_norm": trees.norm(s)}
        return BSVRBv1State(k + 1, x, y, h, s, H, seen, before, (sx, sy)), info
