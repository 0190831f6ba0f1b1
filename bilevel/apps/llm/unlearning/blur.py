"""BLUR: two losses of one variable, of which the first has priority.

`min_x second(x, batch)` over the minimisers of `first(·, batch)`. Reisizadeh et al. "BLUR: A
bi-level optimization approach for LLM unlearning". 2025, arXiv:2506.08164.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar, ScalarLike

from bilevel import trees
from bilevel.apps.llm.methods.single_level import single
from bilevel.fields import Checked, nonnegative, positive
from bilevel.problem import Problem

Loss = Callable[[PyTree, PyTree], Scalar]  # of the variable and a batch


def direction(
    g_first: PyTree, g_second: PyTree, gamma: ScalarLike, *, harmful_only: bool = False
) -> PyTree:
    """The closest direction to `g_second` along which the first loss falls at a given rate.

    `d = g₂ + (γ − ⟨g₂, g₁⟩/‖g₁‖²) g₁` minimises `‖d − g₂‖²` subject to `⟨d, g₁⟩ = γ ‖g₁‖²`. So d is
    `γ g₁` plus the part of g₂ that is orthogonal to g₁; it is g₂ where g₁ is zero. Inner products
    are those of the whole trees.

    Args:
        g_first, g_second: gradients, trees alike.
        gamma: γ, rate of the first loss.
        harmful_only: subject to `⟨d, g₁⟩ ≥ γ ‖g₁‖²` instead (a dynamic barrier).
    """
    square = trees.dot(g_first, g_first)
    safe = jnp.where(square > 0, square, jnp.ones_like(square))
    factor = jnp.asarray(gamma, square.dtype) - trees.dot(g_second, g_first) / safe
    factor = jnp.maximum(factor, 0) if harmful_only else factor
    return trees.axpy(jnp.where(square > 0, factor, 0), g_first, g_second)


class BLUR(Checked):
    """The first loss has priority over the second.

    The step sizes must decrease: a constant one ends at a distance of order of its square root.

    Attributes:
        gamma: γ, rate of the first loss (see `direction`).
        harmful_only: leave the gradient of the second loss as it is where it lowers the first one
            fast enough.
    """

    gamma: ScalarLike = nonnegative(1.0)
    harmful_only: bool = eqx.field(static=True, default=False)

    def problem(self, first: Loss, second: Loss) -> Problem:
        """For a method that takes a declared hypergradient, such as `TTSA`; y is an unused scalar.

        Two gradients a step. The upper loss in the history is `second`.
        """
        return single(second, _Projected(first, second, self.gamma, self.harmful_only))


class WeightedSum(Checked):
    """The baseline `second + weight · first`: GradDiff and NPO + retain, by their losses."""

    weight: ScalarLike = positive(1.0)

    def problem(self, first: Loss, second: Loss) -> Problem:
        """As that of `BLUR`; the upper loss in the history is the sum."""
        return single(_Sum(first, second, self.weight))


class _Projected(eqx.Module):
    first: Callable
    second: Callable
    gamma: ScalarLike
    harmful_only: bool = eqx.field(static=True)

    def __call__(self, x, y, batch):
        g_first = jax.grad(self.first)(x, batch.upper)
        g_second = jax.grad(self.second)(x, batch.upper)
        return direction(g_first, g_second, self.gamma, harmful_only=self.harmful_only)


class _Sum(eqx.Module):
    first: Callable
    second: Callable
    weight: ScalarLike

    def __call__(self, x, batch):
        first, second = self.first(x, batch), self.second(x, batch)
        return second + jnp.asarray(self.weight, first.dtype) * first
