"""What every solver of `H v = b` looks like."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

Operator = Callable[..., PyTree]  # operator(v, i): the product with the i-th sample of H


class AbstractLinear(eqx.Module):
    """Approximates `v = H⁻¹ b` for a symmetric operator on pytrees.

    `operator(v, i)` multiplies with the i-th sample of H; a solver that needs one fixed matrix
    uses sample 0 alone. `samples` says how many it may touch, `products` how many products it
    takes (the mean where that is random).
    """

    needs_key: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def samples(self) -> int: ...

    @property
    @abc.abstractmethod
    def products(self) -> float: ...

    @abc.abstractmethod
    def solve(self, operator: Operator, b: PyTree, *, v0: PyTree | None = None, key=None) -> PyTree:
        """An approximation of `H⁻¹ b`, shaped like b.

        Args:
            v0: where to start; zeros when absent. Ignored by the direct solvers and the series.
            key: a random key, for the solvers with `needs_key`.
        """
