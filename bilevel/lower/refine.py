"""Longer stochastic descents on the lower problem, for methods that refine y now and then.

For a lower level without constraints: `lower_set` is not looked at.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, nonnegative, optional
from bilevel.lower.descent import Descent
from bilevel.problem import Problem, Samples
from bilevel.schedules import Count
from bilevel.sets import Ball
from bilevel.typing import Lower
from bilevel.updates import AbstractUpdate


class BallSGD(eqx.Module):
    """`steps` of `y ← P_B(y − b ∇_y g)` on the ball of a radius about where they start.

    The ball keeps one bad sample from undoing what was reached; without a radius this is SGD. The
    average of the iterates has less noise than the last one, at the price of more bias.

    Attributes:
        radius: of the ball; none when absent.
        average: end at the mean of the iterates y_1, …, y_steps, not at the last.
    """

    steps: int = count()
    radius: ScalarLike | None = nonnegative(None, converter=optional(), infinite=True)
    average: bool = eqx.field(static=True, default=False)

    def descend(
        self,
        problem: Problem,
        x,
        y: Lower,
        samples: Samples,
        *,
        update: AbstractUpdate,
        memory: Any,
        k: Count,
    ) -> Descent:
        """From y, step i on `samples[i]`; schedules see k."""
        ball = None if self.radius is None else Ball(self.radius, center=y)

        def body(carry, i):
            at, mean, memory = carry
            g_y = oracles.lower_grad(problem, x, at, samples[i])
            at, memory = update.step(g_y, memory, at, k)
            at = at if ball is None else ball.project(at)
            return (at, trees.lerp(mean, at, 1 / (i + 1)), memory), trees.norm(g_y)

        (last, mean, memory), norms = jax.lax.scan(body, (y, y, memory), jnp.arange(self.steps))
        return Descent(mean if self.average else last, memory, norms[-1])


class EpochSGD(eqx.Module):
    """Epochs of averaged SGD, each from the last one's mean, half its step and twice as long.

    `first · (2^epochs − 1)` steps in all. On a strongly convex loss with noise the gap falls like
    one over the number of steps, the optimal order, with no tuning beyond the first step size.

    Reference: Hazan, Kale. "Beyond the regret minimization barrier: optimal algorithms for
    stochastic strongly-convex optimization". JMLR 2014.
    """

    first: int = count()  # steps of the first epoch
    epochs: int = count(4)

    @property
    def steps(self) -> int:
        return self.first * (2**self.epochs - 1)

    def descend(self, problem, x, y, samples, *, update, memory, k) -> Descent:
        """From y, step i on `samples[i]`; schedules see k."""
        end = Descent(y, memory, jnp.zeros(()))
        for epoch in range(self.epochs):
            steps, done = self.first * 2**epoch, self.first * (2**epoch - 1)
            end = BallSGD(steps, average=True).descend(
                problem, x, end.y, samples.skip(done),
                update=Shorter(update, 2.0**-epoch), memory=end.memory, k=k,
            )  # fmt: skip
        return end


class Shorter(AbstractUpdate):
    """A fraction of the step of another update."""

    update: AbstractUpdate
    fraction: ScalarLike

    def init(self, tree):
        return self.update.init(tree)

    def step(self, direction, memory, tree, k):
        moved, memory = self.update.step(direction, memory, tree, k)
        return trees.lerp(tree, moved, self.fraction), memory
