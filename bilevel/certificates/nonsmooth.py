"""How stationary x is where the hyper-objective has kinks: by its Moreau envelope, or nearby."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, trees
from bilevel.certificates import measures
from bilevel.certificates.hull import min_norm
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, ScalarLike, Upper

Gradient = Callable[[Upper], Upper]  # the hypergradient at any x


class Moreau(NamedTuple):
    """The gradient of the Moreau envelope, and the point it speaks of."""

    norm: Scalar  # ‖x − prox‖/c
    prox: Upper  # within c·norm of x, and stationary up to `norm`


def moreau_gradient(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    c: ScalarLike = 0.25,
    weak: ScalarLike = 0.0,
    steps: int = 500,
    gradient: Gradient | None = None,
) -> Moreau:
    """`‖x − prox(x)‖/c`, where `prox(x)` minimises `l(z) + ‖z − x‖²/(2c)` over the upper set.

    For a hyper-objective l that is r-weakly convex, with `c < 1/r`. Zero exactly at stationary
    points; otherwise the point prox(x), at a distance of c times the measure, is stationary up
    to the measure: `dist(0, ∂(l + I_X)(prox)) ≤ ‖x − prox‖/c`. Found by projected subgradient
    steps `2/(μ (j + 2))` with `μ = 1/c − r`, averaged with weights j: an error of order
    `(μ √steps)⁻¹` at worst, and far less where l is smooth. A hypergradient a step.

    Args:
        y0: where the lower solves start.
        weak: r, where it is known.
        gradient: `x ↦ ∇l(x)`; when absent the best hypergradient there is, a lower solve each.

    Returns:
        `Moreau(norm, prox)`; NaN where no hypergradient is known.

    Reference: Davis, Drusvyatskiy. "Stochastic model-based minimization of weakly convex
    functions". SIAM J. Optim. 2019, arXiv:1803.06523.
    """
    gradient = hypergradient_of(problem, y0, batch) if gradient is None else gradient
    c = jnp.asarray(c, trees.widest(x))
    mu = 1 / c - jnp.asarray(weak, c.dtype)

    def body(carry, j):
        z, mean = carry
        j = j.astype(c.dtype)
        slope = trees.axpy(1 / c, trees.sub(z, x), trees.cast_like(gradient(z), z))
        z = problem.upper_set.project(trees.axpy(-2 / (mu * (j + 2)), slope, z))
        return (z, trees.lerp(mean, z, 2 / (j + 2))), None

    (_, prox), _ = jax.lax.scan(body, (x, x), jnp.arange(steps))
    return Moreau(trees.norm(trees.sub(x, prox)) / c, prox)


def goldstein(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    radius: ScalarLike,
    samples: int = 64,
    key=None,
    gradient: Gradient | None = None,
) -> Scalar:
    """The least norm in the convex hull of hypergradients sampled within `radius` of x.

    An upper bound of the distance from 0 to the Goldstein subdifferential, the hull of all Clarke
    subgradients in the ball: x is (radius, ε)-Goldstein stationary where it is at most ε. At a
    point of the ball where l is differentiable only one gradient is seen, which is how kinks are
    met. More samples with the same key bring it down, never up; a stationary point may be as far
    away as the radius. Never compare values of different radii.

    Args:
        radius: of the ball. With an x of one entry it is covered by equidistant points, otherwise
            by uniform draws, x itself among them.
        samples: at least 2n + 1, n the number of entries of x.
        key: draws the points; `jax.random.key(0)` when absent.
        gradient: `x ↦ ∇l(x)`; when absent the best hypergradient there is, a lower solve each.

    Returns:
        A scalar; NaN where no hypergradient is known.

    Reference: Zhang, Lin, Jegelka, Sra, Jadbabaie. "Complexity of finding stationary points of
    nonconvex nonsmooth functions". ICML 2020, arXiv:2002.04130.
    """
    gradient = hypergradient_of(problem, y0, batch) if gradient is None else gradient
    key = jax.random.key(0) if key is None else key
    n, r = trees.size(x), jnp.asarray(radius, trees.widest(x))
    centre, unravel = trees.ravel(x)

    def point(i):
        """Uniform in the unit ball; draw i does not depend on how many there are."""
        for_direction, for_length = jax.random.split(jax.random.fold_in(key, i))
        length = jax.random.uniform(for_length, dtype=r.dtype) ** (1 / n)
        return length * hypergrad.sphere(for_direction, centre)

    if n == 1:
        offsets = jnp.linspace(-1, 1, samples, dtype=r.dtype)[:, None]
    else:
        offsets = jax.vmap(point)(jnp.arange(samples - 1))
    offsets = jnp.concatenate([jnp.zeros((1, n), r.dtype), offsets])

    def at(offset):
        return trees.ravel(gradient(unravel(centre + r * offset)))[0]

    gradients = jax.lax.map(at, offsets)
    least = jnp.linalg.norm(min_norm(gradients).point)
    return jnp.where(jnp.all(jnp.isfinite(gradients)), least, jnp.nan)


def hypergradient_of(problem: Problem, y0: Lower, batch: Batch) -> Gradient:
    """The best hypergradient there is, at the lower solution found from y0; else NaN."""

    def gradient(x):
        return measures.solved_hypergradient(problem, x, y0, batch).grad

    return gradient
