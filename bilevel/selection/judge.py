"""The hyper-objective with the lower problem solved anew, by which trials are compared."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import lower, trees
from bilevel.certificates import measures
from bilevel.data import Data
from bilevel.data.sources import Rows
from bilevel.lower import NewtonCG, ToTolerance
from bilevel.problem import Batch, Draws, Problem, Samples
from bilevel.sets import Free
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import SGD

LEAST_BATCHES = 16  # that a value is the mean over, where the data are not all taken
LEAST_ROWS = 1024  # in them
DECLARED_STEPS = 200  # of a problem's own lower step, after which y is taken for solved


class Judge(eqx.Module):
    """The hyper-objective, on the whole data or on a few batches of it."""

    batches: Batch  # on a leading axis

    @property
    def one(self) -> Batch:
        """The first of the batches."""
        return trees.map(lambda leaf: leaf[0], self.batches)

    def solved(self, problem: Problem, x: Upper, y: Lower) -> Lower:
        """The minimiser of the mean lower loss, from y."""
        if problem.lower_step is not None:
            return self._by_declared_steps(problem, x, y)
        mean, batch = self.mean(problem), self.batches.lower
        if isinstance(problem.lower_set, Free):
            return NewtonCG(1e-4, max_steps=500).solve(mean, x, y, batch).y
        if measures.is_simple(problem):
            return ToTolerance(1e-4, max_steps=500).solve(mean, x, y, batch).y
        return measures.solve(mean, x, y, batch).y

    def mean(self, problem: Problem) -> Problem:
        """The problem on all of its batches."""
        return problem.replace(upper=_Mean(problem.upper), lower=_Mean(problem.lower))

    def value(self, problem: Problem, x: Upper, y: Lower) -> Scalar:
        """The mean upper loss."""
        return _Mean(problem.upper)(x, y, self.batches.upper)

    def _by_declared_steps(self, problem: Problem, x: Upper, y: Lower) -> Lower:
        unused = SGD(0.0)  # the problem's own step is taken instead
        memory = lower.lower_step(problem, unused).init(problem, x, y)
        samples, steps = _InTurn(self.batches.lower), DECLARED_STEPS
        return lower.descend(
            problem, x, y, samples, update=unused, memory=memory, steps=steps, k=None
        ).y


class _InTurn(Samples):
    """Batches on a leading axis, one after another, and again from the first."""

    batches: Any

    def __getitem__(self, i):
        leaves = jax.tree.leaves(self.batches)
        return trees.map(lambda leaf: leaf[i % len(leaves[0])], self.batches)


class _Mean(eqx.Module):
    """A loss on batches along a leading axis."""

    loss: Any

    def __call__(self, x, y, batches):
        if batches is None:
            return self.loss(x, y, None)
        return jnp.mean(jax.vmap(lambda batch: self.loss(x, y, batch))(batches))


def judge_of(data: Data, key: RandomKey) -> Judge:
    """All data where they are few, else as many batches as tell trials apart."""
    sizes = [source.batch_size for source in (data.upper, data.lower) if isinstance(source, Rows)]
    most = max(LEAST_BATCHES, -(-LEAST_ROWS // min(sizes)) if sizes else 0)
    few = all(n is not None and n <= most for n in data.batches)
    if data.full is not None and (few or data.blocks is not None):
        return Judge(trees.map(lambda leaf: leaf[None], data.full))
    return Judge(draws(data, key, most))


def draws(data: Data, key: RandomKey, count: int = LEAST_BATCHES) -> Batch:
    """Some batches of each level, on a leading axis."""
    batch = data.feed(key, Draws(count, count)).batch(jnp.int32(0))
    return Batch(batch.upper.stack(count), batch.lower.stack(count))
