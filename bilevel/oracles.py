"""Derivatives of the two losses, each in as few passes as possible.

Notation: `f` the upper loss, `g` the lower one; `hvp = (∂²g/∂y²) v`, shaped like y;
`cross = (∂²g/∂x∂y) v`, shaped like x. Every function takes `(problem, x, y, ..., batch)`.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel import trees
from bilevel.problem import Problem, RepeatedBatch, Samples


def upper_value(problem: Problem, x, y, batch) -> Scalar:
    _record("upper_value")
    return problem.upper(x, y, batch)


def upper_grads(problem: Problem, x, y, batch) -> tuple[Scalar, PyTree, PyTree]:
    """`f, ∇_x f, ∇_y f` in one reverse pass."""
    _record("upper_grad")
    value, (f_x, f_y) = jax.value_and_grad(problem.upper, argnums=(0, 1))(x, y, batch)
    return value, f_x, f_y


def lower_value(problem: Problem, x, y, batch) -> Scalar:
    _record("lower_value")
    return problem.lower(x, y, batch)


def lower_grad(problem: Problem, x, y, batch) -> PyTree:
    """`∇_y g`."""
    _record("lower_grad")
    return jax.grad(problem.lower, argnums=1)(x, y, batch)


def lower_value_and_grad(problem: Problem, x, y, batch) -> tuple[Scalar, PyTree]:
    """`g, ∇_y g` in one pass, counted as one gradient."""
    _record("lower_grad")
    return jax.value_and_grad(problem.lower, argnums=1)(x, y, batch)


def lower_grad_x(problem: Problem, x, y, batch) -> PyTree:
    """`∇_x g`."""
    _record("lower_grad_x")
    return jax.grad(problem.lower, argnums=0)(x, y, batch)


def lower_products(problem: Problem, x, y, v, batch) -> tuple[PyTree, PyTree, PyTree]:
    """`∇_y g, (∂²g/∂y²) v, (∂²g/∂x∂y) v` at one point, in one forward-over-reverse pass."""
    _record("lower_grad", "hvp", "cross")

    def grads(y):
        return jax.grad(problem.lower, argnums=(0, 1))(x, y, batch)

    (_, g_y), (cross, hvp) = jax.jvp(grads, (y,), (v,))
    return g_y, hvp, cross


def hvp(problem: Problem, x, y, v, batch) -> PyTree:
    """`(∂²g/∂y²) v`."""
    _record("hvp")
    return jax.jvp(lambda y: jax.grad(problem.lower, argnums=1)(x, y, batch), (y,), (v,))[1]


def cross(problem: Problem, x, y, v, batch) -> PyTree:
    """`(∂²g/∂x∂y) v`, shaped like x."""
    _record("cross")
    return jax.jvp(lambda y: jax.grad(problem.lower, argnums=0)(x, y, batch), (y,), (v,))[1]


def cross_transposed(problem: Problem, x, y, u, batch) -> PyTree:
    """`(∂²g/∂y∂x) u` for u shaped like x; shaped like y."""
    _record("cross_transposed")
    return jax.jvp(lambda x: jax.grad(problem.lower, argnums=1)(x, y, batch), (x,), (u,))[1]


def hessian(problem: Problem, x, y, samples: Samples) -> Callable[..., PyTree]:
    """The operator `(v, i) → (∂²g_i/∂y²) v`; sample i is read on use.

    If all i share one batch, the gradient is linearised once and only the product is repeated.
    """
    if not isinstance(samples, RepeatedBatch):
        return lambda v, i=0: hvp(problem, x, y, v, samples[i])
    gradient = jax.grad(problem.lower, argnums=1)
    _, linear = jax.linearize(lambda y: gradient(x, y, samples.batch), y)

    def product(v, i=0):
        _record("hvp")
        return linear(v)

    return product


def dense_hessian(problem: Problem, x, y, batch) -> Float[Array, "m m"]:
    """`∂²g/∂y²` as a matrix over the ravelled y, for small problems and tests."""
    _record("dense_hessian")
    flat, unravel = trees.ravel(y)
    return jax.hessian(lambda flat: problem.lower(x, unravel(flat), batch))(flat)


def dense_cross(problem: Problem, x, y, batch) -> Float[Array, "n m"]:
    """`∂²g/∂x∂y` as a matrix over the ravelled x and y, for small problems and tests."""
    _record("dense_cross")
    flat_x, unravel_x = trees.ravel(x)
    flat_y, unravel_y = trees.ravel(y)
    by_y = jax.grad(lambda p, q: problem.lower(unravel_x(p), unravel_y(q), batch), argnums=1)
    return jax.jacobian(by_y, argnums=0)(flat_x, flat_y).T


# --- several lower problems: y has a leading axis of blocks, and g is the sum over them -----------


def block_hessians(problem: Problem, x, y, batch) -> Float[Array, "blocks m m"]:
    """`∂²g_b/∂y_b²` for each block b in the batch, as a matrix over its ravelled row of y.

    g is separable over the blocks, so one product gives a column of every block's matrix.
    """
    _record("dense_hessian")
    flat, unravel = trees.ravel_rows(y)

    def gradient(flat):
        return jax.grad(lambda flat: problem.lower(x, unravel(flat), batch))(flat)

    def column(e):
        return jax.jvp(gradient, (flat,), (jnp.broadcast_to(e, flat.shape),))[1]

    return jax.vmap(column, out_axes=-1)(jnp.eye(flat.shape[1], dtype=flat.dtype))


def block_crosses(problem: Problem, x, y, batch) -> Float[Array, "blocks n m"]:
    """`∂²g_b/∂x∂y_b` for each block b in the batch, over the ravelled x and row of y."""
    _record("dense_cross")
    flat_x, unravel_x = trees.ravel(x)
    flat_y, unravel_y = trees.ravel_rows(y)
    by_y = jax.grad(lambda p, q: problem.lower(unravel_x(p), unravel_y(q), batch), argnums=1)
    passes = jax.jacfwd if flat_x.size <= flat_y.size else jax.jacrev
    return jnp.swapaxes(passes(by_y)(flat_x, flat_y), 1, 2)


# --- value-function pieces: first derivatives only -----------------------------------------


def upper_grad_y(problem: Problem, x, y, batch) -> PyTree:
    """`∇_y f`."""
    _record("upper_grad_y")
    return jax.grad(problem.upper, argnums=1)(x, y, batch)


def upper_grad_x(problem: Problem, x, y, batch) -> tuple[Scalar, PyTree]:
    """`f, ∇_x f`."""
    _record("upper_grad_x")
    return jax.value_and_grad(problem.upper, argnums=0)(x, y, batch)


# --- counting ------------------------------------------------------------------------------


class Price(NamedTuple):
    """Oracle calls of one step, in batches; expected values where the number is random."""

    upper_value: float = 0
    upper_grad: float = 0  # (∇_x f, ∇_y f) together
    upper_grad_x: float = 0
    upper_grad_y: float = 0
    lower_value: float = 0
    lower_grad: float = 0  # ∇_y g
    lower_grad_x: float = 0
    hvp: float = 0
    cross: float = 0
    cross_transposed: float = 0
    dense_hessian: float = 0  # ∂²g/∂y² as a matrix
    dense_cross: float = 0  # ∂²g/∂x∂y as a matrix

    def gradients(self, lower_size: int = 1) -> float:
        """The price in gradient evaluations.

        A value counts half, a second-order product two, a dense matrix `2 · lower_size`.
        """
        values = self.upper_value + self.lower_value
        products = self.hvp + self.cross + self.cross_transposed
        matrices = self.dense_hessian + self.dense_cross
        firsts = sum(self) - values - products - matrices
        return firsts + values / 2 + 2 * products + 2 * lower_size * matrices


_counters: list[collections.Counter] = []


@contextlib.contextmanager
def counting() -> Iterator[collections.Counter]:
    """Context manager that counts the oracle calls made inside it.

    Calls are counted when Python runs them, so use it under `jax.disable_jit()`: traced code runs
    once in Python, however often the compiled loop repeats it.
    """
    counter = collections.Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.pop()  # by position: `remove` would remove the first counter that is equal


@contextlib.contextmanager
def mapped(n: int) -> Iterator[None]:
    """Count each call inside n times, for a `jax.vmap` over n points that Python runs once."""
    calls = collections.Counter()
    _counters.append(calls)
    try:
        yield
    finally:
        _counters.pop()
        for counter in _counters:
            counter.update({name: (n - 1) * count for name, count in calls.items()})


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Do not count calls whose unused result the compiler removes."""
    held, _counters[:] = list(_counters), []
    try:
        yield
    finally:
        _counters[:] = held


def record(**calls: int) -> None:
    """Count calls that happen implicitly, by differentiation through others."""
    for counter in _counters:
        counter.update(calls)


def _record(*names: str) -> None:
    for counter in _counters:
        counter.update(names)
