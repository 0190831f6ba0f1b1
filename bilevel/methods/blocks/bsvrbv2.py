"""BSVRB-v2: many lower problems, a few per step, with a tracked adjoint for each.

Hu, Qiu, Guo, Zhang, Yang. "Blockwise stochastic variance-reduced methods with parallel speedup
for multi-block bilevel optimization". ICML 2023, arXiv:2305.18730.
Differs from the paper: v is the adjoint of the whole problem, the paper's v_b divided by m; the
trackers of a block start at its first evaluation; x is projected on `upper_set` if there is one.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.estimators import MSVR
from bilevel.fields import NONNEGATIVE, nonnegative, optional
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.blocks import blocks
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, first_one, horizon
from bilevel.sets import Ball
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Point(NamedTuple):
    """Where directions are taken; leading axes are blocks."""

    x: Upper
    y: blocks.Rows
    v: blocks.Rows


class BSVRBv2State(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # row b follows y_b*(x)
    v: Lower  # row b follows the solution of H_b v_b = ∇_y f_b / m
    h: Upper  # direction of x
    s: blocks.Rows  # row b follows ∇_y g_b
    u: blocks.Rows  # row b follows H_b v_b − ∇_y f_b / m
    seen: Bool[Array, " blocks"]  # blocks drawn in an earlier step
    missed: Int[Array, " blocks"]  # steps since a block was last drawn
    before: Point
    updates: tuple[Any, Any, Any]  # memories of the x, y and v updates


class BSVRBv2(AbstractMethod):
    """Many lower problems, a few per step: variance-reduced gradients and adjoints, no matrices.

    A step draws I of m blocks. It tracks their `∇_y g_b` and `(∂²g_b/∂y²) v_b − ∇_y f_b` by MSVR
    and moves x along a STORM average of the mean over them of `∇_x f_b − (∂²g_b/∂x∂y) v_b`. Every
    y_b and v_b moves along its last tracked direction. A step evaluates two points on the same
    sample. This takes two upper gradients and two fused lower products (gradient, Hessian and
    cross product) per block. Use it with `Problem(..., blocks=m)` and `Data(..., blocks=I)`;
    without them there is one block, the whole y, and the method is SOBA with STORM directions.
    Assumes lower losses strongly convex in y and sample losses with Lipschitz derivatives. As in
    SOBA the x step must be small compared to the y and v steps. With x, y and v steps of order
    ε^(1/2) and weights of order ε, at most `m ε^(−3/2)/I` steps give a mean squared hypergradient
    of ε.

    Attributes:
        weight: a of the MSVR trackers.
        x_weight: weight of the average along which x moves.
        correction: γ of the trackers; if `None`, the value of the theory, which needs a < 1.
        radius: a bound on `‖H_b⁻¹ ∇_y f_b‖` over the blocks, which the analysis requires; v is
            not bounded if `None`.
        catch_up: move only y and v of the drawn blocks, by all the steps they have missed at once,
            as the released code does. For plain gradient steps.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.02, 1 / 3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 1 / 3)
    )
    v_update: AbstractUpdate = eqx.field(
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
    radius: ScalarLike | None = nonnegative(None, converter=optional(), infinite=True)
    catch_up: bool = eqx.field(static=True, default=False)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.BLOCKS})
    memory: ClassVar[str] = "3 x, 6 y"
    rate: ClassVar[str] = "m ε^(−3/2)"
    paper: ClassVar[str] = "hu2023blockwise"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """All steps of order `K^(−1/3)`, x a tenth of the others, and weights `K^(−2/3)`."""
        weight = Polynomial(1.0, 2 / 3, 2.0) if steps is None else horizon(0.9, 2 / 3, steps)
        fast = horizon(1 / constants.L, 1 / 3, steps)
        return cls(horizon(0.1 / constants.hyper_L, 1 / 3, steps), fast, fast, weight, weight)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=2, lower_grad=2, hvp=2, cross=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BSVRBv2State:
        many = blocks.Blocks.of(problem)
        x, y, v, h = trees.copy(x0), trees.copy(y0), trees.zeros_like(y0), trees.zeros_like(x0)
        before = Point(trees.copy(x), trees.copy(many.stack(y)), trees.copy(many.stack(v)))
        s, u = trees.zeros_like(before.y), trees.zeros_like(before.y)
        unseen, missed = jnp.zeros(many.m, bool), jnp.zeros(many.m, jnp.int32)
        updates = self.x_update.init(x), self.y_update.init(y), self.v_update.init(v)
        k = jnp.zeros((), jnp.int32)
        return BSVRBv2State(k, x, y, v, h, s, u, unseen, missed, before, updates)

    def step(
        self, problem: Problem, state: BSVRBv2State, batch: Batch
    ) -> tuple[BSVRBv2State, dict[str, Scalar]]:
        k, x, y, v, h, s, u, seen, missed, before, (sx, sy, sv) = state
        many = blocks.Blocks.of(problem)
        problem, drawn = many.problem, many.drawn(batch)
        here = Point(x, many.stack(y), many.stack(v))
        share = drawn.size / many.m  # ∇_y f of a draw weighs a block 1/I, that of the whole 1/m

        def directions(point: Point):
            x, y, v = point.x, blocks.take(point.y, drawn), blocks.take(point.v, drawn)
            value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
            g_y, hvp, cross = oracles.lower_products(problem, x, y, v, batch.lower)
            return value, trees.axpy(-1 / share, cross, f_x), (g_y, trees.axpy(-share, f_y, hvp))

        # At both points the same blocks and samples.
        (value, G, new), (_, G_old, old) = directions(here), directions(before)
        msvr = MSVR(many.m, self.weight, self.correction)
        s, u = msvr.combine((s, u), new, old, drawn, k, seen)
        h = trees.axpy(1 - first_one(self.x_weight, k), trees.sub(h, G_old), G)

        d_y, d_v = s, u
        if self.catch_up:
            due = jnp.zeros_like(missed).at[drawn].set(missed[drawn] + 1)
            d_y, d_v = blocks.scale(due, s), blocks.scale(due, u)
        x, sx = self.x_update.step(h, sx, x, k)
        y, sy = self.y_update.step(many.unstack(d_y), sy, y, k)
        v, sv = self.v_update.step(many.unstack(d_v), sv, v, k)
        if self.radius is not None:
            ball = Ball(self.radius / many.m)
            v = many.unstack(jax.vmap(ball.project)(many.stack(v)))
        info = {"upper": value, "hypergrad_norm": trees.norm(h), "lower_grad_norm": trees.norm(s)}
        return BSVRBv2State(
            k + 1,
            problem.upper_set.project(x),
            *(y, v, h, s, u),
            seen.at[drawn].set(True),
            (missed + 1).at[drawn].set(0),
            here,
            (sx, sy, sv),
        ), info
