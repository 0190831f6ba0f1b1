"""Solvers that need only products with H."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, ScalarLike

from bilevel import trees
from bilevel.fields import count, nonnegative
from bilevel.linear.base import AbstractLinear, widened
from bilevel.schedules import shown


class CG(AbstractLinear):
    """Conjugate gradients: at most `steps` products with one fixed sample of H ≻ 0.

    After N steps the error is at most `2((√κ−1)/(√κ+1))^N` in the H-norm. It is exact after as
    many steps as y has entries. Stops early once `‖H v − b‖ ≤ tol ‖b‖`, or at rounding level.
    """

    steps: int = count(20)
    tol: ScalarLike = nonnegative(0.0)

    @property
    def samples(self) -> int:
        return 1

    @property
    def products(self) -> float:
        return self.steps + 1  # the first residual takes one

    def solve(self, operator, b, *, v0=None, key=None):
        product, wide = widened(operator, b)
        return trees.cast_like(_conjugate(product, wide, v0, self.steps, self.tol), b)

    def __repr__(self) -> str:
        return f"CG(steps={self.steps})"


class NormalCG(AbstractLinear):
    """Conjugate gradients on `H H v = H b`: for an indefinite or singular H.

    Squares the condition number and takes two products a step. For a singular H, started from
    zero, it finds the solution of least norm. Takes at most `steps` steps, and stops early once
    `‖H (H v − b)‖ ≤ tol ‖H b‖`.
    """

    steps: int = count(20)
    tol: ScalarLike = nonnegative(0.0)

    @property
    def samples(self) -> int:
        return 1

    @property
    def products(self) -> float:
        return 2 * self.steps + 3

    def solve(self, operator, b, *, v0=None, key=None):
        product, wide = widened(operator, b)
        v = _conjugate(lambda v: product(product(v)), product(wide), v0, self.steps, self.tol)
        return trees.cast_like(v, b)

    def __repr__(self) -> str:
        return f"NormalCG(steps={self.steps})"


class FixedPoint(AbstractLinear):
    """`steps` times `v ← v − a (H_i v − b)`, a = `step_size`, each with the next sample of H.

    With one fixed H the error shrinks by `1 − a μ` a step (needs `a ≤ 1/L`); with fresh samples
    this is stochastic gradient descent on `½ vᵀH v − bᵀv`, unbiased, with a noise floor of order a.
    """

    steps: int = count(10, least=0)
    step_size: ScalarLike = nonnegative(0.1)

    @property
    def samples(self) -> int:
        return self.steps

    @property
    def products(self) -> float:
        return self.steps

    def solve(self, operator, b, *, v0=None, key=None):
        def body(v, i):
            return trees.axpy(-jnp.asarray(self.step_size), trees.sub(operator(v, i), b), v), None

        start = trees.zeros_like(b) if v0 is None else trees.cast_like(v0, b)
        return jax.lax.scan(body, start, jnp.arange(self.steps))[0]

    def __repr__(self) -> str:
        return f"FixedPoint(steps={self.steps}, step_size={shown(self.step_size)})"


class Neumann(AbstractLinear):
    """The truncated series `v = a Σ_{q=0..Q} Π_{i≤q} (I − a H_i) b`: Q = `steps`, a = `step_size`.

    Each factor takes the next sample of H, which keeps the mean equal to the series of the mean
    H. For a fixed H the error is at most `(1 − a μ)^(Q+1) ‖b‖/μ` when `a ≤ 1/L`.
    """

    steps: int = count(10, least=0)
    step_size: ScalarLike = nonnegative(0.1)

    @property
    def samples(self) -> int:
        return self.steps

    @property
    def products(self) -> float:
        return self.steps

    def solve(self, operator, b, *, v0=None, key=None):
        def body(carry, i):
            r, total = carry
            r = trees.axpy(-jnp.asarray(self.step_size), operator(r, i), r)
            return (r, trees.add(total, r)), None

        (_, total), _ = jax.lax.scan(body, (b, b), jnp.arange(self.steps))
        return trees.scale(self.step_size, total)

    def __repr__(self) -> str:
        return f"Neumann(steps={self.steps}, step_size={shown(self.step_size)})"


class RandomizedNeumann(AbstractLinear):
    """`v = t a Π_{i≤p} (I − a H_i) b` with p uniform on 0, …, t−1 and t = `terms`.

    Its mean is `Neumann(t − 1, a)`, with half the products and a variance that grows like t.
    The prefactor is `t a` and the range of p starts at 0; other choices leave a bias that does
    not vanish. `step_size` must be at most 1/L. The loop has random length, so it cannot be
    differentiated in reverse mode.

    Reference: Ghadimi, Wang. "Approximation methods for bilevel programming". arXiv:1802.02246.
    """

    terms: int = count(10, least=0)
    step_size: ScalarLike = nonnegative(0.1)
    needs_key = True

    def __check_init__(self):
        if self.terms < 1:
            raise ValueError(f"RandomizedNeumann: terms is {self.terms}; at least 1 is needed.")

    @property
    def samples(self) -> int:
        return self.terms - 1

    @property
    def products(self) -> float:
        return (self.terms - 1) / 2

    def solve(self, operator, b, *, v0=None, key=None):
        if key is None:
            raise ValueError(
                "RandomizedNeumann draws its number of factors: give key=jax.random.key(...)."
            )

        def body(i, r):
            return trees.axpy(-jnp.asarray(self.step_size), operator(r, i), r)

        p = jax.random.randint(key, (), 0, self.terms)
        return trees.scale(
            self.terms, trees.scale(self.step_size, jax.lax.fori_loop(0, p, body, b))
        )

    def __repr__(self) -> str:
        return f"RandomizedNeumann(terms={self.terms}, step_size={shown(self.step_size)})"


def _conjugate(product, b: PyTree, v0: PyTree | None, steps: int, tol: ScalarLike) -> PyTree:
    """Conjugate gradients in one dtype; derivatives by the implicit function theorem.

    Stops at rounding level, relative to b, and before squares underflow. Beyond either point the
    next step would divide zero by zero.
    """
    if not jax.tree.leaves(b):
        return b
    dtype = trees.widest(b)
    relative = jnp.maximum(jnp.asarray(tol, dtype), jnp.finfo(dtype).eps)
    absolute = float(jnp.finfo(dtype).tiny) ** 0.4
    v0 = None if v0 is None else trees.cast_like(v0, b)
    return jax.scipy.sparse.linalg.cg(
        product,
        b,
        x0=v0,
        tol=relative,  # pyright: ignore[reportArgumentType]
        atol=absolute,
        maxiter=steps,
    )[0]
