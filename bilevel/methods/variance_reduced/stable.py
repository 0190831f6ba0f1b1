"""STABLE: tracked dense second derivatives, and a lower step that corrects for the move of x.

Chen, Sun, Xiao, Yin. "A single-timescale method for stochastic bilevel optimization". AISTATS 2022,
arXiv:2102.04671.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, oracles, trees
from bilevel.estimators import STORM, Path
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.hypergrad import Curvature
from bilevel.linear import matrices
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.variance_reduced.sampled import Point
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import AbstractSchedule, Polynomial, as_schedule, horizon
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class STABLEState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    curvature: Path  # last `Curvature`, and its `Point`
    updates: tuple[Any, Any]  # memories of the x and y updates


class STABLE(AbstractMethod):
    """Single loop and single timescale, with dense second derivatives: for a small lower level.

    Recursive momentum (STORM) on H = `∂²g/∂y²` and J = `∂²g/∂x∂y`, each projected on its known
    bounds. x moves along `∇_x f − J H⁻¹ ∇_y f`. y moves along `∇_y g` plus `−H⁻¹ Jᵀ (x₊ − x)`, the
    change of `y*(x)` caused by the move of x. With all steps and weights of order `K^(−1/2)` the
    mean squared hypergradient is `O(K^(−1/2))`. Assumes a lower loss strongly convex in y, with up
    to a few hundred unknowns: a step takes order m³ operations for m entries of y.

    Attributes:
        weight: τ, weight of a new sample in the tracked matrices; the first is always 1.
        convexity: μ, lower bound of the eigenvalues of H. Use the strong convexity of the lower
            loss; the default only keeps H invertible.
        cross_bound: C, upper bound of the singular values of J.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.05, 0.5)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Polynomial(0.2, 0.5)
    )
    weight: AbstractSchedule = eqx.field(
        converter=as_schedule, default_factory=lambda: Polynomial(1.0, 0.5), metadata=NONNEGATIVE
    )
    convexity: ScalarLike = nonnegative(1e-3)
    cross_bound: ScalarLike = nonnegative(1e3)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "2 x, 2 y, y × y, x × y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "chen2022single"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Steps and weight of order `K^(−1/2)`; bounds of the matrices from `constants`.

        The bounds have a safety factor of two, because those of single samples are looser than
        those of the mean.
        """
        return cls(
            horizon(0.5 / constants.hyper_L, 1 / 2, steps),
            horizon(1 / constants.L, 1 / 2, steps),
            horizon(1.0, 1 / 2, steps),
            constants.mu / 2,
            2 * constants.cross,
        )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=2)

    def price(self, problem: Problem) -> Price:
        return Price(upper_grad=1, lower_grad=1, dense_hessian=2, dense_cross=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> STABLEState:
        x, y = trees.copy(x0), trees.copy(y0)
        curvature = Path(Curvature.zeros(x, y), trees.copy(Point(x, y)))
        updates = self.x_update.init(x), self.y_update.init(y)
        return STABLEState(jnp.zeros((), jnp.int32), x, y, curvature, updates)

    def step(
        self, problem: Problem, state: STABLEState, batch: Batch
    ) -> tuple[STABLEState, dict[str, Scalar]]:
        k, x, y, last, (sx, sy) = state
        lower, point = as_samples(batch.lower, 2), Point(x, y)

        def estimand(point: Point, sample) -> Curvature:
            return hypergrad.curvature(problem, *point, sample)

        (H, J), _ = STORM(self.weight).step(estimand, point, lower[0], last, k)
        H = matrices.floor_eigenvalues(H, self.convexity)
        J = matrices.cap_norm(J, self.cross_bound)
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        h = hypergrad.from_matrices(value, f_x, f_y, H, J)
        g_y = oracles.lower_grad(problem, x, y, lower[1])
        new, sx = self.x_update.step(h.grad, sx, x, k)
        new = problem.upper_set.project(new)
        ahead = matrices.solve(H, matrices.multiply(J.T, trees.sub(new, x), like=y))
        moved, sy = self.y_update.step(g_y, sy, y, k)
        moved = trees.sub(moved, ahead)  # −H⁻¹ Jᵀ (x₊ − x)
        norms = {"hypergrad_norm": trees.norm(h.grad), "lower_grad_norm": trees.norm(g_y)}
        last = Path(Curvature(H, J), point)
        return STABLEState(k + 1, new, moved, last, (sx, sy)), {"upper": value, **norms}
