"""The base class of all direction estimators."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.fields import Checked
from bilevel.schedules import Count

Estimand = Callable[[Any, Any], PyTree]  # estimand(point, sample): pure, all randomness in sample


class AbstractEstimator(Checked):
    """Turns evaluations of an estimand `D(w; s)` into a direction, with a memory of its own.

    The first direction (k = 0) is always `D(w_0; s_0)`.
    """

    @abc.abstractmethod
    def init(self, estimand: Estimand, point: Any, sample: Any) -> Any:
        """The memory before the first step. The shapes come from abstract evaluation."""

    @abc.abstractmethod
    def step(
        self, estimand: Estimand, point: Any, sample: Any, memory: Any, k: Count
    ) -> tuple[PyTree, Any]:
        """The direction at `point` and the new memory."""


def zeros_of(estimand: Estimand, point: Any, sample: Any) -> PyTree:
    """Zeros in the shape of a direction, without evaluating it."""
    shapes = eqx.filter_eval_shape(estimand, point, sample)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
