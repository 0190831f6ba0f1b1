"""Hypergradients from values of perturbed lower problems: first derivatives only."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper

# Weights of the first derivative at 0 by differences: {order: ((node, weight), ...)}.
DIFFERENCES = {
    1: ((0, -1.0), (1, 1.0)),
    2: ((-1, -1 / 2), (1, 1 / 2)),
    3: ((-1, -1 / 3), (0, -1 / 2), (1, 1.0), (2, -1 / 6)),
    4: ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)),
}


def differences(order: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The nodes and weights of the difference formula of an order.

    Raises:
        ValueError: `order` is not 1, 2, 3 or 4.
    """
    if order not in DIFFERENCES:
        raise ValueError(f"value_difference has orders 1, 2, 3 and 4; order={order} was asked for.")
    nodes, weights = zip(*DIFFERENCES[order], strict=True)
    return nodes, weights


class Perturbed(eqx.Module):
    """The lower loss `g + s f`, on a `Batch`."""

    problem: Problem
    s: Array

    def __call__(self, x, y, batch: Batch):
        g = self.problem.lower(x, y, batch.lower)
        f = self.problem.upper(x, y, batch.upper)
        return g + self.s.astype(g.dtype) * f.astype(g.dtype)


def value_difference(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    penalty: ScalarLike = 100.0,
    order: int = 1,
    solver: AbstractLowerSolver | None = None,
) -> HyperGrad:
    """Hypergradient by finite differences of `s → ∇_x min over y of (g + s f)` at `s = 0`.

    With `y_s` the minimiser of `g + s f` and `s = 1/penalty`, order 1 is
    `∇_x f(x, y_s) + penalty (∇_x g(x, y_s) − ∇_x g(x, y_0))`, with a bias of order `1/penalty`;
    order p has a bias of order `1/penalty^p`. Needs `penalty > L_f/μ` (times the largest node,
    2, for orders 3 and 4). The perturbed problems are solved in one batch, subject to the
    `lower_set` if there is one. The error of the solver is multiplied by the penalty.

    Args:
        x: any pytree of floating arrays.
        y0: starting point of all lower solves.
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        penalty: `1/s`.
        order: 1, 2, 3 or 4.
        solver: solver of the lower problems; `ToTolerance()` if `None`.

    Returns:
        `HyperGrad(value, grad, y=...)`. y has the minimisers on a leading axis, in the order of
        the nodes in `DIFFERENCES`; `value` is taken at the node nearest to zero.

    Raises:
        ValueError: `order` is not 1, 2, 3 or 4.

    References: Kwon, Kwon, Wright, Nowak, ICML 2023, arXiv:2301.10945 (order 1); higher orders:
    arXiv:2509.02937.
    """
    nodes, weights = differences(order)
    solver = ToTolerance() if solver is None else solver
    penalty = jnp.asarray(penalty, jnp.result_type(float))
    s = jnp.asarray(nodes, penalty.dtype) / penalty

    def at(s):
        perturbed = Perturbed(problem, s)
        inner = problem.replace(lower=perturbed)
        y = solver.solve(inner, x, y0, batch).y
        return jax.grad(perturbed)(x, y, batch), y

    slopes, ys = jax.vmap(at)(s)
    # Term by term, because a matrix product may run in the reduced precision of accelerators; its
    # rounding error, times the penalty, would be larger than the difference.
    terms = [trees.scale(w * penalty, _entry(slopes, i)) for i, w in enumerate(weights)]
    grad = functools.reduce(trees.add, terms)
    nearest = _entry(ys, nodes.index(min(nodes, key=lambda node: (abs(node), -node))))
    return HyperGrad(oracles.upper_value(problem, x, nearest, batch.upper), grad, y=ys)


def value_difference_at(
    problem: Problem, x: Upper, y: Lower, z: Lower, upper, lower_y, lower_z, penalty
) -> HyperGrad:
    """Order 1 at given iterates: y follows the minimiser of `g + f/penalty`, z that of `g`.

    Returns `∇_x f(x, y) + penalty (∇_x g(x, y) − ∇_x g(x, z))` as grad. With
    `lower_y is lower_z` (common samples) the noise of the difference stays bounded as the penalty
    grows. `upper` is the batch of f; `lower_y` and `lower_z` are those of g at y and at z.
    """
    (value, fs), gs = value_slopes(problem, x, (z, y), upper, (lower_z, lower_y))
    return HyperGrad(value, weigh_slopes(fs, gs, penalty), y=y)


def value_slopes(
    problem: Problem, x: Upper, ys: tuple[Lower, ...], upper, lowers: tuple, order: int = 1
):
    """`((f, ∇_x f's), ∇_x g's)`, one lower iterate per node; f at node 1, no `∇_x f` at node 0.

    Args:
        ys, lowers: a lower iterate and a batch of g for each node.
        upper: the batch of f.
        order: of the difference in the penalty; it has `order + 1` nodes.
    """
    nodes, _ = differences(order)
    at = {
        node: oracles.upper_grad_x(problem, x, y, upper)
        for node, y in zip(nodes, ys, strict=True)
        if node
    }
    fs = tuple(at[node][1] if node else None for node in nodes)
    gs = tuple(oracles.lower_grad_x(problem, x, y, b) for y, b in zip(ys, lowers, strict=True))
    return (at[1][0], fs), gs


def weigh_slopes(fs: tuple, gs: tuple, penalty, order: int = 1) -> Upper:
    """The hypergradient `Σ_j w_j (penalty ∇_x g + j ∇_x f)(x, y_j)`, from its slopes.

    `fs`, `gs` and `order` are those of `value_slopes`.
    """
    nodes, weights = differences(order)
    slopes = [trees.scale(w * j, f) for j, w, f in zip(nodes, weights, fs, strict=True) if j]
    difference = [trees.scale(w, g) for w, g in zip(weights, gs, strict=True)]
    f_x, g_x = (functools.reduce(trees.add, terms) for terms in (slopes, difference))
    return trees.axpy(penalty, g_x, f_x)


def _entry(tree, i: int):
    return trees.map(lambda leaf: leaf[i], tree)
