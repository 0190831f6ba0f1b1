"""Gradient descent with a difference of Lagrangians, for lower levels under linear equations.

Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly constrained bilevel
optimization". NeurIPS 2024, arXiv:2406.12771: the method for equality constraints.
Differs from the paper: the two lower problems are solved by any solver of `bilevel.lower`.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, trees
from bilevel.fields import nonnegative
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class KornowskiEqState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # minimises g on the lower set
    y_s: Lower  # minimises g + s f there
    update: Any  # memory of the x update


class KornowskiEq(AbstractMethod):
    """Projected descent along a finite difference of two Lagrangians: first derivatives only.

    x moves along `hypergrad.lagrangian_difference`: the lower problems of g and of `g + s f` are
    solved on `A y + H(x) = c`, warm-started, and the result is the difference of the gradients in
    x of their Lagrangians. The bias is of order s, and the solves cost `√κ log(1/s)` gradients.
    Assumes a lower loss strongly convex in y and A of full rank, which make the hyper-objective
    smooth. The gradient mapping is ε after `O(ε⁻²)` steps of size at most one over its smoothness.
    Deterministic: a step uses one batch.

    Attributes:
        perturbation: s; of order ε² in theory, 1e-4 to 1e-6 in double precision.
        solver: solver of the lower problems, with a tolerance of order s².
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    perturbation: ScalarLike = nonnegative(1e-4)
    solver: AbstractLowerSolver = eqx.field(default_factory=lambda: ToTolerance(1e-8))

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_EQUATIONS})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "kornowski2024first"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls after the two lower solves, whose length is not known."""
        return Price(upper_grad_x=1, lower_grad=2, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> KornowskiEqState:
        x = trees.copy(problem.upper_set.project(x0))
        y = problem.lower_set.project(y0, x)
        k = jnp.zeros((), jnp.int32)
        return KornowskiEqState(k, x, trees.copy(y), trees.copy(y), self.x_update.init(x))

    def step(
        self, problem: Problem, state: KornowskiEqState, batch: Batch
    ) -> tuple[KornowskiEqState, dict[str, Scalar]]:
        k, x, *ys, sx = state
        h = hypergrad.lagrangian_difference(
            problem, x, tuple(ys), batch, perturbation=self.perturbation, solver=self.solver
        )
        y, y_s = h.y
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
        }
        return KornowskiEqState(k + 1, problem.upper_set.project(x), y, y_s, sx), info
