"""Estimators that use only the current point."""

import equinox as eqx

from bilevel import trees
from bilevel.estimators.base import AbstractEstimator, zeros_of
from bilevel.fields import NONNEGATIVE
from bilevel.schedules import AbstractSchedule, as_schedule, first_one


class SGD(AbstractEstimator):
    """`d = D(w; s)`."""

    def init(self, estimand, point, sample):
        return None

    def step(self, estimand, point, sample, memory, k):
        return estimand(point, sample), memory


class MovingAverage(AbstractEstimator):
    """`d ← (1 − θ_k) d + θ_k D(w; s)`, θ = `weight`; biased while w moves, even without noise."""

    weight: AbstractSchedule = eqx.field(default=0.1, converter=as_schedule, metadata=NONNEGATIVE)

    def init(self, estimand, point, sample):
        return zeros_of(estimand, point, sample)

    def step(self, estimand, point, sample, memory, k):
        direction = trees.lerp(memory, estimand(point, sample), first_one(self.weight, k))
        return direction, direction
