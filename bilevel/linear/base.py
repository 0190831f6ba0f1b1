"""What every solver of `H v = b` looks like."""

import abc
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import PyTree

from bilevel import trees
from bilevel.fields import Checked

Operator = Callable[..., PyTree]  # operator(v, i): the product with the i-th sample of H


class AbstractLinear(Checked):
    """Approximates `v = H⁻¹ b` for a symmetric operator on pytrees.

    `operator(v, i)` multiplies with the i-th sample of H and keeps the dtypes of v; a solver that
    needs one fixed matrix uses sample 0 alone.
    """

    needs_key: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def samples(self) -> int:
        """How many samples of H one solve may touch."""

    @property
    @abc.abstractmethod
    def products(self) -> float:
        """How many products with H one solve takes; the mean where that is random."""

    @abc.abstractmethod
    def solve(self, operator: Operator, b: PyTree, *, v0: PyTree | None = None, key=None) -> PyTree:
        """An approximation of `H⁻¹ b`, shaped like b and in its dtypes.

        Args:
            operator: `operator(v, i)`, v shaped like b.
            b: right-hand side, any pytree of floating arrays.
            v0: where to start; zeros when absent. Ignored by the direct solvers and the series.
            key: a random key, for the solvers with `needs_key`.
        """


def widened(operator: Operator, b: PyTree) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """Sample 0 of H and the right-hand side in one dtype, float32 at least, for exact arithmetic.

    The products themselves are still taken in the dtypes of b.
    """
    wide = trees.widen(b)

    def product(v: PyTree) -> PyTree:
        return trees.cast_like(operator(trees.cast_like(v, b), 0), wide)

    return product, wide
