"""Both directions at a point (x, y) as one estimand, for estimators that compare two points.

All randomness is in the sample. The old and the new point use the same batches and the same number
of factors of a randomised series; otherwise the noise would not cancel in the difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, oracles, trees
from bilevel.estimators import mean_over
from bilevel.fields import count
from bilevel.linear import AbstractLinear
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, RepeatedBatch, Samples, ZippedSamples, as_samples
from bilevel.typing import Lower, RandomKey, Upper


class Point(NamedTuple):
    """The point at which directions are evaluated."""

    x: Upper
    y: Lower


class Sample(NamedTuple):
    """One draw of all the randomness in a pair of directions."""

    upper: Any
    lower: Samples  # 0 for ∇_y g, the rest for the hypergradient
    key: RandomKey | None  # for the linear solver, if it draws at random


class Directions(NamedTuple):
    """The direction estimates for x and y, and the upper loss at the same point."""

    value: Any  # upper loss, a scalar
    x: Upper  # hypergradient
    y: Lower  # ∇_y g


class Sampled(NamedTuple):
    """The estimand `(x, y) ↦ (f, hypergradient, ∇_y g)` of a problem, on a `Sample`.

    Uses the hypergradient in closed form if the problem declares one, else the implicit one.
    """

    problem: Problem
    linear: AbstractLinear

    def __call__(self, point: Point, sample: Sample) -> Directions:
        (x, y), (upper, lower, key) = point, sample
        batch = Batch(upper, lower.skip(1))
        h = hypergrad.closed_form_or_implicit(
            self.problem, x, y, batch, linear=self.linear, key=key
        )
        g_y = oracles.lower_grad(self.problem, x, y, lower[0])
        return Directions(h.value.astype(trees.widest(point)), trees.cast_like(h.grad, x), g_y)

    def zeros(self, point: Point, sample: None = None) -> Directions:
        """Zeros in the shapes of the directions."""
        value = jnp.zeros((), trees.widest(point))
        return Directions(value, trees.zeros_like(point.x), trees.zeros_like(point.y))

    def draws(self, n: int) -> Draws:
        """The number of batches in n samples."""
        return Draws(upper=n, lower=n * self._lower)

    def samples(self, batch: Batch, n: int, key: RandomKey | None) -> Samples:
        """The n samples in the batches of one step; a `RepeatedBatch` without randomness."""
        draws = self.draws(n)
        upper, lower = as_samples(batch.upper, draws.upper), as_samples(batch.lower, draws.lower)
        found = Bundles(upper, lower, key, self._lower)
        fixed = (
            isinstance(upper, RepeatedBatch) and isinstance(lower, RepeatedBatch) and key is None
        )
        return RepeatedBatch(found[0]) if fixed else found

    def large(
        self, batch: Batch, skip: int, r: int, key: RandomKey | None
    ) -> tuple["Sampled", Sample]:
        """The estimand of losses averaged over r batches, and its sample.

        The sample consists of the batches of r samples after the first `skip`. Each of its parts
        takes r consecutive batches. With the order "epochs" and r batches per epoch these are all
        rows.
        """
        draws = self.draws(skip + r)
        upper = as_samples(batch.upper, draws.upper).skip(skip)
        lower = as_samples(batch.lower, draws.lower).skip(skip * self._lower)
        lower = RepeatedBatch(lower) if isinstance(lower, RepeatedBatch) else Groups(lower, r)
        key = None if key is None else jax.random.fold_in(key, skip)
        return Sampled(averaged(self.problem, r), self.linear), Sample(upper, lower, key)

    def everything(self, whole: Batch, key: RandomKey | None) -> tuple["Sampled", Sample]:
        """The estimand of all the data at once, and its sample; read where it is evaluated."""
        at_once = Problem(
            lambda x, y, rows: self.problem.upper(x, y, rows[0]),
            lambda x, y, rows: self.problem.lower(x, y, rows[0]),
            hypergradient=_at_once(self.problem.hypergradient),
        )
        return Sampled(at_once, self.linear), Sample(whole.upper, RepeatedBatch(whole.lower), key)

    def price(self, times: float) -> Price:
        """The oracle calls of `times` evaluations."""
        if self.problem.hypergradient is not None:
            return Price(upper_value=times, lower_grad=times)
        hvp = times * self.linear.products
        return Price(upper_grad=times, lower_grad=times, hvp=hvp, cross=times)

    @property
    def _lower(self) -> int:
        return 2 + (0 if self.problem.hypergradient is not None else self.linear.samples)


def _at_once(known: Callable | None) -> Callable | None:
    """A hypergradient of rows that are read on use."""
    if known is None:
        return None
    return lambda x, y, batch: known(x, y, Batch(batch.upper[0], batch.lower[0]))


class Bundles(Samples):
    """`Sample` i: the i-th upper batch, the i-th run of `size` lower batches, and the i-th key."""

    upper: Samples
    lower: Samples
    key: RandomKey | None
    size: int = count()

    def __getitem__(self, i):
        key = None if self.key is None else jax.random.fold_in(self.key, i)
        return Sample(self.upper[i], self.lower.skip(i * self.size), key)


class Groups(Samples):
    """Runs of `size` batches, each a handle."""

    samples: Samples
    size: int = count()

    def __getitem__(self, i):
        return self.samples.skip(i * self.size)


def averaged(problem: Problem, r: int) -> Problem:
    """The problem whose losses are means over r batches, passed as a `Samples` handle."""

    def mean(fn):
        return lambda x, y, samples: mean_over(lambda s: fn(x, y, s), samples, r)

    known = problem.hypergradient

    def hypergradient(x, y, batch):
        return mean(known)(x, y, ZippedSamples(*batch[:2]))

    return Problem(
        mean(problem.upper),
        mean(problem.lower),
        hypergradient=None if known is None else hypergradient,
    )
