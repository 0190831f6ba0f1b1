"""Hypergradients of a lower level with linear equality constraints."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.hypergrad.value_difference import Perturbed
from bilevel.linear import CG, AbstractLinear, Equations
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.problem import Batch, Problem, RepeatedBatch, Samples
from bilevel.typing import Lower, Upper


def null_space(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    linear: AbstractLinear | None = None,
    v0: Lower | None = None,
    key=None,
) -> HyperGrad:
    """Implicit hypergradient with linear equations in y, which may depend on x.

    The lower set is `r(x, y) = E(x) y − d(x) = 0`, and P projects on the null space of E. Solves
    `P H P w = P ∇_y f` for w in that null space, `H = ∂²g/∂y²`, and returns

        ∇_x f − (∂²g/∂x∂y) w + (∂r/∂x)ᵀ q − ∂_x ⟨λ, E(x) w⟩,    q = (E⁺)ᵀ (H w − ∇_y f),

    with `λ = −(E⁺)ᵀ ∇_y g`. The last two terms are due to the dependence of the equations on x.
    Exact if y minimises the lower loss subject to the equations and the linear solve is exact. g
    has to be strongly convex only along the null space. Without equations this is `implicit`.

    Args:
        x, y: any pytrees of floating arrays.
        batch, linear, v0, key: as in `implicit`. The operator of the linear solver is H on the null
            space and the identity on its complement, which does not change the solution.

    Returns:
        `HyperGrad(value, grad, v, residual)` with `v = w` and `‖P (H w − ∇_y f)‖`.

    Reference: Xiao, Shen, Yin, Chen. "Alternating projected SGD for equality-constrained bilevel
    optimization". AISTATS 2023, arXiv:2211.07096.
    """
    linear = CG(20) if linear is None else linear
    samples = batch.lower if isinstance(batch.lower, Samples) else RepeatedBatch(batch.lower)
    equations = Equations.of(problem.lower_set, y, x)
    value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
    rest = samples.skip(1)
    hessian = oracles.hessian(
        problem, x, y, RepeatedBatch(rest[0]) if linear.samples == 1 else rest
    )

    def operator(v, i=0):
        along = equations.tangent(v)
        return trees.add(trees.sub(v, along), equations.tangent(hessian(along, i)))

    w = linear.solve(operator, equations.tangent(f_y), v0=v0, key=key)
    g_y, hvp, cross = oracles.lower_products(problem, x, y, w, samples[0])
    off = trees.sub(hvp, f_y)
    dual, q = equations.multiplier(g_y), equations.multiplier(trees.scale(-1.0, off))

    def moved(x):
        here = _equations(problem, x, y)
        along = _equations(problem, x, trees.add(y, w)) - here  # E(x) w
        return jnp.dot(q, here) - jnp.dot(dual, along)

    grad = trees.add(trees.sub(f_x, cross), jax.grad(moved)(x))
    return HyperGrad(value, grad, w, trees.norm(equations.tangent(off)))


def lagrangian_difference(
    problem: Problem,
    x: Upper,
    ys: tuple[Lower, Lower],
    batch: Batch = Batch(),
    *,
    perturbation: ScalarLike = 1e-4,
    solver: AbstractLowerSolver | None = None,
) -> HyperGrad:
    """First-order hypergradient under linear lower equations, by a difference of Lagrangians.

    With `y_s` the minimiser of `g + s f` on the lower set, `λ_s` the multipliers of its equations
    and `L = g + λᵀ(E(x) y − d(x))`, it is

        ∇_x f(x, y_0) + (∇_x L(x, y_s, λ_s) − ∇_x L(x, y_0, λ_0))/s,

    with a bias of order s. The error of the solver is divided by s, so use a tolerance of order s².

    Args:
        ys: starting points of the solves for y_0 and y_s.
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        perturbation: s.
        solver: solver of the lower problems; `ToTolerance()` if `None`.

    Returns:
        `HyperGrad(value, grad, y=(y_0, y_s), lower_grad_norm=...)`; the last is the residual of
        the solve for y_0.

    Reference: Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly
    constrained bilevel optimization". NeurIPS 2024, arXiv:2406.12771.
    """
    solver = ToTolerance() if solver is None else solver
    s = jnp.asarray(perturbation, trees.widest(ys))

    def solve(s: Array, y0: Lower):
        perturbed = Perturbed(problem, s)
        inner = problem.replace(lower=perturbed)
        found = solver.solve(inner, x, y0, batch)
        slope = oracles.lower_grad(inner, x, found.y, batch)
        dual = Equations.of(problem.lower_set, found.y, x).multiplier(slope)
        force = jax.grad(lambda x: jnp.dot(dual, _equations(problem, x, found.y)))(x)
        g_x = oracles.lower_grad_x(problem, x, found.y, batch.lower)
        return trees.add(g_x, force), found

    both = jax.vmap(solve)(jnp.stack([jnp.zeros_like(s), s]), _pair(*ys))
    (at_0, found_0), (at_s, found_s) = (trees.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
    value, f_x = oracles.upper_grad_x(problem, x, found_0.y, batch.upper)
    grad = trees.axpy(1 / s, trees.sub(at_s, at_0), f_x)
    return HyperGrad(value, grad, lower_grad_norm=found_0.residual, y=(found_0.y, found_s.y))


def _equations(problem: Problem, x: Upper, y: Lower) -> Array:
    """`E(x) y − d(x)` as one vector."""
    values = problem.lower_set.constraints(y, x).equalities
    dtype = trees.widest((values, y))
    pieces = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(values)]
    return jnp.concatenate([jnp.zeros(0, dtype), *pieces])


def _pair(a: Lower, b: Lower) -> Lower:
    return trees.map(lambda p, q: jnp.stack([p, q]), a, b)
