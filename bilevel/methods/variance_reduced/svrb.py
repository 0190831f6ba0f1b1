"""SVRB: recursive momentum on every factor of the hypergradient, with dense second derivatives.

Guo, Yang. "Randomized stochastic variance-reduced methods for multi-task stochastic bilevel
optimization". 2021, arXiv:2105.02266; here with one lower problem.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from bilevel import hypergrad, oracles, trees
from bilevel.estimators import STORM, Path
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.hypergrad import Curvature
from bilevel.linear import matrices
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.variance_reduced.sampled import Point
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Factors(NamedTuple):
    """The factors of the directions of x and y."""

    value: Scalar  # f
    f_x: Upper
    f_y: Lower
    hessian: Float[Array, "m m"]  # ∂²g/∂y²
    cross: Float[Array, "n m"]  # ∂²g/∂x∂y
    g_y: Lower


class SVRBState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    factors: Path  # last `Factors`, and their `Point`
    updates: tuple[Any, Any]  # memories of the x and y updates


class SVRB(AbstractMethod):
    """Single loop with recursive momentum (STORM) on all five factors: for a small lower level.

    `∇_x f`, `∇_y f`, J = `∂²g/∂x∂y`, H = `∂²g/∂y²` (kept above μ) and `∇_y g` are each tracked. x
    moves along `∇_x f − J H⁻¹ ∇_y f`, y along `∇_y g`. No series is truncated, so without
    noise the direction is exact. With x and y steps of order `k^(−1/3)` and a weight of order
    `k^(−2/3)` the mean squared hypergradient is `O(K^(−2/3))` up to logarithms, on one sample per
    step. Assumes a lower loss strongly convex in y, with up to a few hundred unknowns (a step takes
    order m³ operations for m entries of y), and sample losses that are smooth, not only their
    means.

    Attributes:
        weight: b, weight of a new sample in every factor; the first is always 1.
        convexity: μ, lower bound of the eigenvalues of H. Use the strong convexity of the lower
            loss; the default only keeps H invertible.
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

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "3 x, 4 y, y × y, x × y"
    rate: ClassVar[str] = "ε^(−3/2)"
    paper: ClassVar[str] = "guo2021randomizedv1"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """x and y steps of order `K^(−1/3)`, weight of the order of their square, half of μ.

        x a fifth of its stable step, so that y is fast enough to follow without delay.
        """
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

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> SVRBState:
        x, y = trees.copy(x0), trees.copy(y0)
        value, curvature = jnp.zeros((), trees.widest((x, y))), Curvature.zeros(x, y)
        f_x, f_y, g_y = trees.zeros_like(x), trees.zeros_like(y), trees.zeros_like(y)
        factors = Path(Factors(value, f_x, f_y, *curvature, g_y), trees.copy(Point(x, y)))
        updates = self.x_update.init(x), self.y_update.init(y)
        return SVRBState(jnp.zeros((), jnp.int32), x, y, factors, updates)

    def step(
        self, problem: Problem, state: SVRBState, batch: Batch
    ) -> tuple[SVRBState, dict[str, Scalar]]:
        k, x, y, last, (sx, sy) = state

        def estimand(point: Point, sample: Batch) -> Factors:
            value, f_x, f_y = oracles.upper_grads(problem, *point, sample.upper)
            curvature = hypergrad.curvature(problem, *point, sample.lower)
            g_y = oracles.lower_grad(problem, *point, sample.lower)
            return Factors(value.astype(trees.widest(point)), f_x, f_y, *curvature, g_y)

        factors, path = STORM(self.weight).step(estimand, Point(x, y), batch, last, k)
        H = matrices.floor_eigenvalues(factors.hessian, self.convexity)
        value, f_x, f_y, _, J, g_y = factors
        h = hypergrad.from_matrices(value, f_x, f_y, H, J)
        x, sx = self.x_update.step(h.grad, sx, x, k)
        y, sy = self.y_update.step(g_y, sy, y, k)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": trees.norm(g_y),
        }
        kept = path._replace(direction=factors._replace(hessian=H))
        return SVRBState(k + 1, problem.upper_set.project(x), y, kept, (sx, sy)), info
