"""Value and gradient of a superquantile of the upper loss over a sample of lower points."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.lower.gibbs import Cloud
from bilevel.problem import Batch, Problem
from bilevel.typing import Scalar, Upper


class Tail(NamedTuple):
    """The highest part of a weighted sample."""

    quantile: Scalar  # b
    mean: Scalar  # the superquantile
    excess: Float[Array, " points"]  # (f − b)₊
    inside: Float[Array, " points"]  # weights of the tail, which sum to 1


def tail(values: Array, weights: Array, level: ScalarLike) -> Tail:
    """The superquantile `min over b of b + E(f − b)₊/d`: the mean of the highest part d.

    b is the (1 − d)-quantile. The point at b is split so that the tail has weight exactly d.

    Args:
        values: f at each point, shape (n,).
        weights: of the points, shape (n,), with sum 1.
        level: d, in (0, 1].
    """
    d = jnp.asarray(level, values.dtype)
    order = jnp.argsort(-values)
    before = jnp.cumsum(weights[order]) - weights[order]  # total weight of the higher points
    taken = jnp.clip(d - before, 0, weights[order])
    inside = jnp.zeros_like(weights).at[order].set(taken) / d
    b = values[order][jnp.sum(before < d) - 1]
    excess = jnp.maximum(values - b, 0)
    return Tail(b, b + weights @ excess / d, excess, inside)


def superquantile(
    problem: Problem,
    x: Upper,
    cloud: Cloud,
    batch: Batch = Batch(),
    *,
    temperature: ScalarLike,
    level: ScalarLike,
    pessimistic: bool = True,
) -> HyperGrad:
    """Gradient of the superquantile of `f(x, ·)` under `exp(−g(x, ·)/T)`, by likelihood ratios.

    With b the (1 − d)-quantile, `F = b + E(f − b)₊/d` and
    `∇F = 1/d { E 1[f > b] ∇_x f − 1/T Cov((f − b)₊, ∇_x g) }`. As T → 0, then d → 0, F tends to
    the pessimistic hyper-objective `max f(x, y)` over the lower minimisers. The mean over the part
    d biases F downwards, the width of order √T upwards. The optimistic version takes the lowest
    part. The covariance is the part of `∇F` due to the dependence of the minimisers on x; its
    variance is of order 1/T per point.

    Args:
        cloud: points and weights at temperature T, from a sampler of `bilevel.lower`.
        temperature, level: T, and d in (0, 1).

    Returns:
        `HyperGrad(value, grad, y)`; y is the point of the tail with the lowest lower loss.

    Reference: Masiha, Shen, Kiyavash, He. "Superquantile-Gibbs relaxation for minima-selection in
    bi-level optimization". 2025, arXiv:2505.05991. The estimator agrees with public code.
    """
    sign = 1 if pessimistic else -1
    points = cloud.weights.size

    def at(y):
        f, f_x = oracles.upper_grad_x(problem, x, y, batch.upper)
        g = oracles.lower_value(problem, x, y, batch.lower)
        return f, f_x, g, oracles.lower_grad_x(problem, x, y, batch.lower)

    with oracles.mapped(points):
        f, f_x, g, g_x = jax.vmap(at)(cloud.y)
    weights = cloud.weights.astype(f.dtype)
    high = tail(sign * f, weights, level)
    T, d = jnp.asarray(temperature, f.dtype), jnp.asarray(level, f.dtype)
    centred = weights * (high.excess - weights @ high.excess)

    def mean(weights, rows):
        return trees.map(lambda row: jnp.tensordot(weights.astype(row.dtype), row, 1), rows)

    direct = mean(high.inside, f_x)
    moving = mean(centred / (d * T), g_x)
    grad = trees.axpy(-sign, moving, direct)
    best = jnp.argmin(jnp.where(high.inside > 0, g, jnp.inf))
    y = trees.map(lambda row: row[best], cloud.y)
    return HyperGrad(sign * high.mean, grad, y=y)
