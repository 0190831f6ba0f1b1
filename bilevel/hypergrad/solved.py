"""Hypergradient oracles for outer loops: each call solves the lower problem first."""

import abc

import equinox as eqx
from jaxtyping import Array, ScalarLike

from bilevel import oracles
from bilevel.fields import Checked, nonnegative, positive
from bilevel.hypergrad.kkt import kkt
from bilevel.hypergrad.result import HyperGrad
from bilevel.hypergrad.two_penalty import two_penalty
from bilevel.hypergrad.two_point import two_point
from bilevel.lower import SQP, AbstractLowerSolver, Duals, LowerSolution
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, RandomKey, Upper


class AbstractOracle(Checked):
    """`x → l'(x)`, exact or not: each call solves the lower problem, starting from y."""

    @abc.abstractmethod
    def __call__(
        self, problem: Problem, x: Upper, y: Lower, batch: Batch, key: RandomKey | None = None
    ) -> HyperGrad:
        """The hypergradient at x; its `y` is the lower solution, to warm-start the next call."""

    @property
    @abc.abstractmethod
    def price(self) -> Price:
        """The oracle calls of one evaluation, without those of the lower solves."""


class ActiveSet(AbstractOracle):
    """Solve the lower problem by `solver`, and differentiate its active set: `kkt`."""

    solver: AbstractLowerSolver = eqx.field(default_factory=SQP)

    def __call__(self, problem, x, y, batch, key=None):
        found = self.solver.solve(problem, x, y, batch.lower)
        duals, _ = _multipliers(self.solver, found)
        h = kkt(problem, x, found.y, duals, batch)
        return h._replace(lower_grad_norm=found.residual)

    @property
    def price(self):
        return Price(upper_grad=1, dense_hessian=1, cross=1)


class TwoPenalty(AbstractOracle):
    """Solve the lower problem with multipliers, then a penalised one near it: `two_penalty`.

    Attributes:
        accuracy: a; the error is of order a, and 0.01 to 0.1 is sensible.
        inner: solver of the penalised problem.
    """

    accuracy: ScalarLike = nonnegative(0.03)
    solver: AbstractLowerSolver = eqx.field(default_factory=SQP)
    inner: AbstractLowerSolver = eqx.field(default_factory=SQP)

    def __call__(self, problem, x, y, batch, key=None):
        found = self.solver.solve(problem, x, y, batch.lower)
        duals, active = _multipliers(self.solver, found)
        settings = {"accuracy": self.accuracy, "inner": self.inner}
        h = two_penalty(problem, x, found.y, duals, active, batch, **settings)
        return h._replace(lower_grad_norm=found.residual)

    @property
    def price(self):
        return Price(upper_value=1, upper_grad_x=1, lower_grad_x=2)


class TwoPoint(AbstractOracle):
    """Two values of the hyper-objective, at x ± radius along a random direction: `two_point`.

    `solver` finds y* at both points.
    """

    radius: ScalarLike = positive(0.02)
    solver: AbstractLowerSolver = eqx.field(default_factory=SQP)

    def __call__(self, problem, x, y, batch, key=None):
        if key is None:
            raise ValueError("TwoPoint draws its direction at random: a key is needed.")

        def value(x):
            found = self.solver.solve(problem, x, y, batch.lower)
            return oracles.upper_value(problem, x, found.y, batch.upper), found

        grad, (ahead, _) = two_point(value, x, key, self.radius, has_aux=True)
        at = oracles.upper_value(problem, x, ahead.y, batch.upper)
        return HyperGrad(at, grad, y=ahead.y, lower_grad_norm=ahead.residual)

    @property
    def price(self):
        return Price(upper_value=3)


def _multipliers(solver: AbstractLowerSolver, found: LowerSolution) -> tuple[Duals, Array]:
    """The multipliers and the active rows in a lower solution.

    Raises:
        ValueError: the solver computes no multipliers.
    """
    if found.duals is None or found.active is None:
        raise ValueError(
            f"{type(solver).__name__} finds no multipliers of the lower_set; a solver that does is "
            "needed, such as lower.SQP()."
        )
    return found.duals, found.active
