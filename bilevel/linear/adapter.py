"""Adapters for the solvers of other libraries."""

from typing import Any

import equinox as eqx
import jax

from bilevel import trees
from bilevel.linear.base import AbstractLinear


class Lineax(AbstractLinear):
    """Any `lineax` solver: `Lineax(lineax.GMRES(rtol=1e-6, atol=1e-6))`.

    Needs the extra `bilevel[solvers]`. Uses one fixed sample of H. The number of products depends
    on the solver.

    Attributes:
        definite: whether H is known to be positive definite, which `lineax.CG` requires. Set it to
            False for a lower problem that is not strongly convex.
    """

    solver: Any = eqx.field(static=True)
    definite: bool = eqx.field(static=True, default=True)

    @property
    def samples(self) -> int:
        return 1

    @property
    def products(self) -> float:
        return float("nan")

    def solve(self, operator, b, *, v0=None, key=None):
        try:
            import lineax
        except ImportError as error:
            raise ImportError(
                "linear.Lineax needs lineax: pip install 'bilevel[solvers]'"
            ) from error

        tag = lineax.positive_semidefinite_tag if self.definite else lineax.symmetric_tag
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            matrix = lineax.FunctionLinearOperator(
                lambda v: operator(v, 0), jax.eval_shape(lambda: b), tag
            )
            found = lineax.linear_solve(
                matrix, b, self.solver, options={} if v0 is None else {"y0": v0}, throw=False
            )
        return trees.cast_like(found.value, b)
