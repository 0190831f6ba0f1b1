"""Values of the hyper-objective if the lower minimiser is not unique, and the selected minimiser.

`l(x) = min f(x, y)` over the lower minimisers y (optimistic), or the maximum (pessimistic). At a
fixed x this is a problem in y alone, called a simple bilevel problem.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import Checked, count, nonnegative
from bilevel.hypergrad.value_difference import Perturbed
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class Selected(NamedTuple):
    """One of the lower minimisers, approximately."""

    value: Scalar  # the estimate of l(x)
    y: Lower
    gap: Scalar  # g(x, y) minus the estimate of min g(x, ·)


class AbstractSelection(Checked):
    """Finds the optimistic or pessimistic lower minimiser at a fixed x."""

    @abc.abstractmethod
    def select(self, problem: Problem, x: Upper, y0: Lower, batch: Batch) -> Selected:
        """The value of l(x) and its minimiser, started at y0.

        Args:
            batch: `Batch(upper, lower)`, one batch of each.
        """

    @abc.abstractmethod
    def price(self) -> Price:
        """The oracle calls of one selection, at most; without those of solves to a tolerance."""


class SwitchingGradient(AbstractSelection):
    """Optimistic selection: steps on f where g is within a tolerance of its minimum, else on g.

    First `min g` is estimated by `first_steps` lower steps from y0. The output is the mean of the
    iterates with a step on f. For convex f and g. The error of l(x) is about the square root of
    the tolerance, and g exceeds its minimum by about the tolerance. Takes at most
    `first_steps + steps` gradients.

    Attributes:
        upper_update: update along ∇_y f.
        lower_update: update along ∇_y g, with step size 1/L. (The paper takes the same small step
            size for both; then most steps are spent on g.)
        tol: g may exceed the minimum by twice this value.

    Reference: Chen, Xu, Zhang. "On finding small hyper-gradients in bilevel optimization:
    hardness results and improved analysis". COLT 2024, arXiv:2301.00712.
    """

    upper_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    lower_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    tol: ScalarLike = nonnegative(1e-3)
    steps: int = count(500)
    first_steps: int = count(100, least=0)

    def price(self) -> Price:
        grads = self.first_steps + self.steps  # of both levels together
        return Price(upper_value=1, lower_value=self.steps + 2, lower_grad=grads)

    def select(self, problem, x, y0, batch):
        def gap(y):
            return oracles.lower_value(problem, x, y, batch.lower) - least

        def on_g(y, sf, sg, k):
            y, sg = self.lower_update.step(oracles.lower_grad(problem, x, y, batch.lower), sg, y, k)
            return y, sf, sg

        def on_f(y, sf, sg, k):
            y, sf = self.upper_update.step(
                oracles.upper_grad_y(problem, x, y, batch.upper), sf, y, k
            )
            return y, sf, sg

        def descend(carry, k):
            y, sf, sg = carry
            y, sf, sg = on_g(y, sf, sg, k)
            return (problem.lower_set.project(y, x), sf, sg), None

        def switch(carry, k):
            (y, sf, sg), total, n = carry
            good = gap(y) <= 2 * jnp.asarray(self.tol, least.dtype)
            total, n = trees.where(good, trees.add(total, y), total), n + good.astype(n.dtype)
            y, sf, sg = jax.lax.cond(good, on_f, on_g, y, sf, sg, k)
            return ((problem.lower_set.project(y, x), sf, sg), total, n), None

        start = y0, self.upper_update.init(y0), self.lower_update.init(y0)
        start, _ = jax.lax.scan(descend, start, jnp.arange(self.first_steps))
        least = oracles.lower_value(problem, x, start[0], batch.lower)
        none = trees.zeros_like(y0), jnp.zeros((), jnp.int32)
        end, _ = jax.lax.scan(switch, (start, *none), jnp.arange(self.steps))
        (last, _, _), total, n = end
        mean = trees.scale(1 / jnp.maximum(n, 1).astype(trees.widest(y0)), total)
        y = trees.where(n > 0, mean, last)
        return Selected(oracles.upper_value(problem, x, y, batch.upper), y, gap(y))


class PenalisedSelection(AbstractSelection):
    """Selection by a penalty: `min over y of f + λ (g − min g)`; pessimistic: `max f − λ (…)`.

    If g(x, ·) satisfies the Polyak-Łojasiewicz inequality the error is O(1/λ): too small in the
    optimistic case, too large in the pessimistic one. Takes two lower solves. λ must be large
    enough that `λ g ± f` is bounded below.

    Attributes:
        penalty: λ.
        solver: for `g` and for `g ± f/λ`. It must find global minima, so f should be convex on the
            lower solutions, or the start close to the solution.
    """

    penalty: ScalarLike = nonnegative(100.0)
    pessimistic: bool = eqx.field(static=True, default=False)
    solver: AbstractLowerSolver = eqx.field(default_factory=lambda: ToTolerance(1e-6))

    def price(self) -> Price:
        return Price(upper_value=1, lower_value=2)

    def select(self, problem, x, y0, batch):
        sign = -1 if self.pessimistic else 1
        penalty = jnp.asarray(self.penalty)
        tilted = Perturbed(problem, sign / penalty)
        both = problem.replace(lower=tilted)
        lowest = self.solver.solve(problem, x, y0, batch.lower).y
        y = self.solver.solve(both, x, lowest, Batch(batch.upper, batch.lower)).y
        least = oracles.lower_value(problem, x, lowest, batch.lower)
        gap = oracles.lower_value(problem, x, y, batch.lower) - least
        f = oracles.upper_value(problem, x, y, batch.upper)
        return Selected(f + sign * penalty.astype(f.dtype) * gap.astype(f.dtype), y, gap)
