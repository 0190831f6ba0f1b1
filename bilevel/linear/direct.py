"""Solvers that form columns of H: for a few hundred unknowns, and for tests."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import ScalarLike

from bilevel import trees
from bilevel.fields import count, nonnegative
from bilevel.linear.base import AbstractLinear, widened
from bilevel.schedules import shown


class Dense(AbstractLinear):
    """Form H from its products with the unit vectors and factorise it. Exact."""

    @property
    def samples(self) -> int:
        return 1

    @property
    def products(self) -> float:
        return float("nan")  # as many as y has entries

    def solve(self, operator, b, *, v0=None, key=None):
        product, wide = widened(operator, b)
        flat, unravel = ravel_pytree(wide)
        matrix = jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0])(
            jnp.eye(flat.size, dtype=flat.dtype)
        )
        return trees.cast_like(unravel(jnp.linalg.solve(matrix, flat)), b)


class Nystrom(AbstractLinear):
    """`(C W⁺ Cᵀ + ridge·I)⁻¹ b` from `rank` columns C of H (W their rows of the same indices).

    Directions outside the span of the columns are divided by `ridge`. Choose it near the largest
    eigenvalue that the rank leaves out: a small ridge with a small rank gives enormous errors. The
    columns are drawn with `key`; without a key they are the first ones.

    Reference: Hataya, Yamada. "Nyström method for accurate and scalable implicit
    differentiation". AISTATS 2023, arXiv:2302.09726.
    """

    rank: int = count(5)
    ridge: ScalarLike = nonnegative(0.1)

    @property
    def samples(self) -> int:
        return 1

    @property
    def products(self) -> float:
        return self.rank

    def solve(self, operator, b, *, v0=None, key=None):
        product, wide = widened(operator, b)
        flat, unravel = ravel_pytree(wide)
        rank, rho = min(self.rank, flat.size), jnp.asarray(self.ridge, flat.dtype)
        if key is None:
            chosen = jnp.arange(rank)
        else:
            chosen = jax.random.choice(key, flat.size, (rank,), replace=False)
        unit = jax.nn.one_hot(chosen, flat.size, dtype=flat.dtype)
        columns = jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0])(unit).T
        with jax.default_matmul_precision("highest"):  # the two terms nearly cancel
            inner = columns[chosen] + columns.T @ columns / rho
            correction = columns @ jnp.linalg.solve(inner, columns.T @ flat)
        return trees.cast_like(unravel(flat / rho - correction / rho**2), b)

    def __repr__(self) -> str:
        return f"Nystrom(rank={self.rank}, ridge={shown(self.ridge)})"
