"""The constants of an error bound, measured on the way by a few power steps a time.

With the adjoint v, `φ(x, y) = f − vᵀ∇_y g` is the value corrected for an inexact y: at y*(x) it
equals the hyper-objective, and when `H v = ∇_y f` its gradient in x is the hypergradient and its
gradient in y is zero. So its second derivatives bound what an inexact y does to either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import effort, oracles, trees
from bilevel.linear.tolerance import conjugate
from bilevel.problem import Batch, Problem, RepeatedBatch
from bilevel.typing import Lower, RandomKey, Scalar, Upper


class CurvatureEstimates(NamedTuple):
    """Norms at the last point looked at; with each, the vector that was stretched most."""

    mu: Scalar  # smallest eigenvalue of ∂²g/∂y²
    cross: Scalar  # ‖∂²g/∂x∂y‖
    curvature: Scalar  # ‖∂²φ/∂y²‖
    curvature_x: Scalar  # ‖∂²φ/∂x∂y‖
    flattest: Lower
    crossing: Lower
    bent: Lower
    bent_x: Lower


def corrected_grads(problem: Problem, x: Upper, y: Lower, v: Lower, batch: Batch):
    """`∇_x φ, ∇_y φ`, which cost an upper gradient and a lower product."""

    def corrected(x, y):
        slope = jax.jvp(lambda y: problem.lower(x, y, batch.lower), (y,), (v,))[1]
        return problem.upper(x, y, batch.upper) - slope

    return jax.grad(corrected, argnums=(0, 1))(x, y)


@effort.briefly
def start(y: Lower, key: RandomKey) -> CurvatureEstimates:
    """Nothing measured yet: random vectors, sizes of one."""
    one = jnp.ones((), trees.widest(y))
    vectors = jax.vmap(lambda k: _unit(trees.random_like(k, y)))(jax.random.split(key, 4))
    each = [trees.map(lambda leaf, i=i: leaf[i], vectors) for i in range(4)]
    return CurvatureEstimates(one, one, one, one, *each)


def smallest_eigenvalue(
    problem: Problem,
    x,
    y,
    batch,
    sizes: CurvatureEstimates,
    noise: Lower,
    *,
    rounds,
    max_steps: int,
) -> tuple[CurvatureEstimates, Scalar]:
    """`mu` by inverse iteration, each solve to a few per cent from the last; and products taken.

    The vector is shaken a little every time, so that it does not miss another that takes over: by
    `noise`, a random vector shaped like y.
    """
    product = oracles.hessian(problem, x, y, RepeatedBatch(batch))

    def matrix(u):
        return trees.cast_like(product(trees.cast_like(u, y)), u)

    def body(_, carry):
        u, mu, steps = carry
        b = _shaken(u, noise)
        w = conjugate(matrix, b, trees.scale(1 / mu, u), 0.05, max_steps)
        u = _unit_or(w.v, u)
        image = matrix(u)
        quotient = trees.dot(u, image)  # never below the smallest eigenvalue
        mu = jnp.where(quotient > 0, quotient, mu).astype(mu.dtype)
        return u, mu, steps + w.steps + 2

    u = trees.widen(sizes.flattest)
    u, mu, steps = jax.lax.fori_loop(0, rounds, body, (u, sizes.mu, jnp.zeros((), jnp.int32)))
    return sizes._replace(mu=mu, flattest=trees.cast_like(u, y)), steps


def cross_norm(
    problem: Problem, x, y, batch, sizes: CurvatureEstimates, noise: Lower, *, rounds
) -> CurvatureEstimates:
    """`‖∂²g/∂x∂y‖`; two products a round."""

    def there(d):
        return oracles.cross(problem, x, y, d, batch)

    def back(e):
        return oracles.cross_transposed(problem, x, y, e, batch)

    cross, crossing = _norm_of(there, back, sizes.cross, sizes.crossing, noise, rounds)
    return sizes._replace(cross=cross, crossing=crossing)


def curvature_norm(
    problem: Problem, x, y, v, batch: Batch, sizes: CurvatureEstimates, noise, *, rounds
) -> CurvatureEstimates:
    """`‖∂²φ/∂y²‖`; one product of third order a round."""

    def product(d):
        return jax.jvp(lambda y: corrected_grads(problem, x, y, v, batch)[1], (y,), (d,))[1]

    curvature, bent = _norm_of(product, product, sizes.curvature, sizes.bent, noise, rounds)
    return sizes._replace(curvature=curvature, bent=bent)


def curvature_x_norm(
    problem: Problem, x, y, v, batch: Batch, sizes: CurvatureEstimates, noise, *, rounds
) -> CurvatureEstimates:
    """`‖∂²φ/∂x∂y‖`; two products of third order a round."""

    def there(d):
        return jax.jvp(lambda y: corrected_grads(problem, x, y, v, batch)[0], (y,), (d,))[1]

    def back(e):
        return jax.jvp(lambda x: corrected_grads(problem, x, y, v, batch)[1], (x,), (e,))[1]

    curvature_x, bent_x = _norm_of(there, back, sizes.curvature_x, sizes.bent_x, noise, rounds)
    return sizes._replace(curvature_x=curvature_x, bent_x=bent_x)


def _norm_of(there, back, size: Scalar, d: Lower, noise: Lower, rounds) -> tuple[Scalar, Lower]:
    """The norm of a map and the vector it stretches most, by power steps on `back ∘ there`."""

    def body(_, carry):
        d, _ = carry
        d = _unit(_shaken(d, noise))
        image = there(d)
        return _unit_or(back(image), d), trees.norm(image).astype(size.dtype)

    d, size = jax.lax.fori_loop(0, rounds, body, (d, size))
    return size, d


def _shaken(u: Lower, noise: Lower) -> Lower:
    return trees.axpy(0.1, _unit(noise), u)


def _unit(u: Lower) -> Lower:
    size = trees.norm(u)
    return trees.scale(1 / jnp.where(size > 0, size, 1), u)


def _unit_or(u: Lower, otherwise: Lower) -> Lower:
    """u at length one, unless it is zero or not finite."""
    size = trees.norm(u)
    fine = (size > 0) & jnp.isfinite(size)
    return trees.where(fine, trees.cast_like(_unit(u), otherwise), otherwise)
