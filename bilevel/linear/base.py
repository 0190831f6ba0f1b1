"""The base class of all solvers of `H v = b`."""

import abc
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import PyTree

from bilevel import trees
from bilevel.fields import Checked

Operator = Callable[..., PyTree]  # operator(v, i): the product with the i-th sample of H


class AbstractLinear(Checked):
    """Approximates `v = H⁻¹ b` for a symmetric operator on pytrees.

    `operator(v, i)` multiplies v by the i-th sample of H and keeps its dtypes. A solver that needs
    one fixed matrix uses only sample 0.
    """

    needs_key: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def samples(self) -> int:
        """The largest number of samples of H that one solve uses."""

    @property
    @abc.abstractmethod
    def products(self) -> float:
        """The number of products with H in one solve; the expected number if it is random."""

    @abc.abstractmethod
    def solve(self, operator: Operator, b: PyTree, *, v0: PyTree | None = None, key=None) -> PyTree:
        """An approximation of `H⁻¹ b`, shaped like b and in its dtypes.

        Args:
            operator: `operator(v, i)`, v shaped like b.
            b: right-hand side, any pytree of floating arrays.
            v0: starting point, shaped like b; zeros if `None`. Ignored by the direct solvers and
                the series.
            key: a random key, for the solvers with `needs_key`.
        """


def widened(operator: Operator, b: PyTree) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """Sample 0 of H and the right-hand side in one dtype, at least float32.

    The products themselves are still computed in the dtypes of b.
    """
    wide = trees.widen(b)

    def product(v: PyTree) -> PyTree:
        return trees.cast_like(operator(trees.cast_like(v, b), 0), wide)

    return product, wide
