"""KKT residuals: of the lower problem, and of the problem with its value function in one level.

The KKT conditions of value-function formulations are not necessary for optimality (no constraint
qualification holds for `g − v ≤ 0`), and nearly satisfied they may be far from any stationary point
of the hyper-objective. For a strongly convex lower level an ε-KKT point has a hypergradient of
order √ε or ε.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import lower, oracles, sets, trees
from bilevel.certificates import measures
from bilevel.lower import AbstractLowerSolver, Duals
from bilevel.lower import kkt as system
from bilevel.problem import Batch, Problem
from bilevel.typing import Data, Lower, Scalar, ScalarLike, Upper


def lower_kkt_residual(
    problem: Problem, x: Upper, y: Lower, duals: Duals | None = None, batch: Data = None
) -> Scalar:
    """The largest of `‖∇_y L‖, ‖[h]₊‖, ‖e‖, ‖[−λ]₊‖, |λ_i h_i|`, with `L = g + λᵀh + νᵀe`.

    Zero exactly where (y, λ, ν) satisfies its KKT conditions; without a lower set, `‖∇_y g‖`.

    Args:
        duals: multipliers of the constraints in the order of `lower_set.constraints`; when absent
            the ones that fit y best (`lower.duals_at`).
    """
    duals = lower.duals_at(problem, x, y, batch) if duals is None else duals
    h, e, force = _conditions(problem, x, y, duals, batch)
    products = jnp.where(_on(h), duals.inequalities * h, 0)
    return _largest(
        trees.norm(force),
        _norm(jnp.maximum(h, 0)),
        _norm(e),
        _norm(jnp.minimum(duals.inequalities, 0)),
        jnp.max(jnp.abs(products), initial=0),
    )


def fischer_burmeister(
    problem: Problem, x: Upper, y: Lower, duals: Duals | None = None, batch: Data = None
) -> Scalar:
    """The lower KKT conditions in one smooth scalar: `‖(∇_y L, e, φ(λ_i, −h_i))‖`.

    `φ(a, b) = √(a² + b²) − a − b` is zero iff `a ≥ 0, b ≥ 0, a b = 0`.

    Args:
        duals: as in `lower_kkt_residual`.
    """
    duals = lower.duals_at(problem, x, y, batch) if duals is None else duals
    h, e, force = _conditions(problem, x, y, duals, batch)
    a, b = duals.inequalities, jnp.where(_on(h), -h, 1)
    phi = jnp.where(_on(h), jnp.sqrt(a**2 + b**2) - a - b, 0)
    return trees.norm((force, e, phi))


class ValueFunctionKKT(NamedTuple):
    """Residuals of `min f + γ (g − v)` over both variables, the lower constraints kept."""

    stationarity_x: Scalar  # ‖∇_x f + γ (∇_x g − ∇v) + (∂h/∂x)ᵀ m + …‖
    stationarity_y: Scalar  # ‖∇_y f + γ ∇_y g + (∂h/∂y)ᵀ m + …‖
    gap: Scalar  # g(x, y) − v(x)
    violation: Scalar  # ‖([h]₊, e)‖
    complementarity: Scalar  # |mᵀh|

    @property
    def residual(self) -> Scalar:
        """The largest, a negative gap by its size."""
        return _largest(*(jnp.abs(number) for number in self))


def value_function_kkt(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    penalty: ScalarLike,
    duals: Duals | None = None,
    solver: AbstractLowerSolver | None = None,
) -> ValueFunctionKKT:
    """KKT residuals of `min f(x, y) + γ (g(x, y) − v(x))` with y in the lower set.

    `v(x) = min g(x, ·)` and, by the envelope theorem, `∇v = ∇_x L(x, y*, λ*)`: no derivative
    passes through the solve. x is taken as free.

    Args:
        penalty: γ.
        duals: m, multipliers of the constraints at y; zeros when absent.
        solver: for the lower problem; by its kind when absent.

    Returns:
        NaN where the lower problem cannot be solved here.
    """
    duals = system.no_duals(problem, x, y) if duals is None else duals
    gamma = jnp.asarray(penalty)
    v, v_x = _value_function(problem, x, y, batch.lower, solver)
    (_, f_x, f_y), gap, gap_x, gap_y = _joint(problem, x, y, batch, v, v_x)
    push_x, push_y = jax.grad(system.weighed, argnums=(1, 2))(problem, x, y, duals)
    h, e = system.constraints(problem, x, y)
    along = jnp.where(_on(h), duals.inequalities * h, 0)
    return ValueFunctionKKT(
        trees.norm(trees.add(trees.axpy(gamma, gap_x, f_x), push_x)),
        trees.norm(trees.add(trees.axpy(gamma, gap_y, f_y), push_y)),
        gap,
        trees.norm((jnp.maximum(h, 0), e)),
        jnp.abs(jnp.sum(along)),
    )


def bome_residual(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    solver: AbstractLowerSolver | None = None,
) -> Scalar:
    """`min over λ ≥ 0 of ‖∇f + λ ∇q‖² + q`, where `q = g − v`: BOME's measure, for a free y.

    `solver` finds the lower value v.

    Reference: Liu, Ye, Wright, Stone, Liu. "BOME! Bilevel optimization made easy: a simple
    first-order approach". NeurIPS 2022, arXiv:2209.08709.
    """
    v, v_x = _value_function(problem, x, y, batch.lower, solver)
    (_, *f), gap, *q = _joint(problem, x, y, batch, v, v_x)
    square = trees.dot(q, q)
    dual = jnp.maximum(-trees.dot(f, q) / jnp.where(square > 0, square, 1), 0)
    d = trees.axpy(dual, q, f)
    return trees.dot(d, d) + gap.astype(square.dtype)


class EpsKKT(NamedTuple):
    """The conditions of an ε-KKT point, each at most ε there."""

    stationarity: Scalar  # ‖∇f + ρ (∇L(x, y, λ_y) − (∇_x L(x, z, λ_z), 0))‖ in (x, y)
    lower: Scalar  # ρ ‖∇_z L(x, z, λ_z)‖
    lower_feasibility: Scalar  # ‖[h(x, z)]₊‖ and ‖e‖, and |λ_zᵀ h(x, z)|
    gap: Scalar  # |g(x, y) − v(x)|
    feasibility: Scalar  # ‖[h(x, y)]₊‖ and ‖e‖, and |λ_yᵀ h(x, y)|

    @property
    def eps(self) -> Scalar:
        """The least ε."""
        return _largest(*self)


def eps_kkt(
    problem: Problem,
    x: Upper,
    y: Lower,
    z: Lower,
    batch: Batch = Batch(),
    *,
    penalty: ScalarLike,
    y_duals: Duals | None = None,
    z_duals: Duals | None = None,
    solver: AbstractLowerSolver | None = None,
) -> EpsKKT:
    """How nearly (x, y) is a KKT point of the constrained problem, as Lu and Mei define it.

    With a weight ρ ≥ 0, a second lower point z that solves the lower problem, and multipliers of
    the constraints at both.

    Args:
        penalty: ρ.
        y_duals, z_duals: λ_y and λ_z; zeros when absent.
        solver: finds `v(x)`; by the kind of the lower problem when absent.

    Reference: Lu, Mei. "First-order penalty methods for bilevel optimization". SIAM J. Optim. 2024,
    arXiv:2301.01716.
    """
    rho = jnp.asarray(penalty)
    y_duals = system.no_duals(problem, x, y) if y_duals is None else y_duals
    z_duals = system.no_duals(problem, x, z) if z_duals is None else z_duals
    v, _ = _value_function(problem, x, z, batch.lower, solver)

    def lagrangian(x, y, duals):
        push = jax.grad(system.weighed, argnums=(1, 2))(problem, x, y, duals)
        slopes = (
            oracles.lower_grad_x(problem, x, y, batch.lower),
            oracles.lower_grad(problem, x, y, batch.lower),
        )
        return trees.add(slopes, push)

    def feasibility(y, duals):
        h, e = system.constraints(problem, x, y)
        products = jnp.where(_on(h), duals.inequalities * h, 0)
        return _largest(_norm(jnp.maximum(h, 0)), _norm(e), jnp.abs(jnp.sum(products)))

    _, *f = oracles.upper_grads(problem, x, y, batch.upper)
    at_y, (z_x, z_z) = lagrangian(x, y, y_duals), lagrangian(x, z, z_duals)
    joint = trees.sub(at_y, (z_x, trees.zeros_like(y)))
    return EpsKKT(
        trees.norm(trees.axpy(rho, joint, tuple(f))),
        trees.norm(trees.scale(rho, z_z)),
        feasibility(z, z_duals),
        jnp.abs(oracles.lower_value(problem, x, y, batch.lower) - v),
        feasibility(y, y_duals),
    )


def active_set_agreement(
    problem: Problem, x: Upper, y: Lower, y_star: Lower, *, tol: ScalarLike = 1e-6
) -> Scalar:
    """The part of the lower inequalities that are active at both or at neither of y and y*.

    Args:
        y_star: the lower solution, y*.
        tol: active is what is above `−tol`. A side without a bound does not count.

    Returns:
        1 when all agree, also when there are none.
    """
    h, _ = system.constraints(problem, x, y)
    h_star, _ = system.constraints(problem, x, y_star)
    tol = jnp.asarray(tol, h.dtype)
    count = jnp.sum(_on(h))
    same = jnp.sum(_on(h) & ((h > -tol) == (h_star > -tol)))
    return jnp.where(count > 0, same / jnp.maximum(count, 1), 1).astype(h.dtype)


def lower_gap(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Data = None,
    *,
    solver: AbstractLowerSolver | None = None,
) -> Scalar:
    """`g(x, y) − min g(x, ·)`: tracking where the minimisers are many.

    `solver` finds the minimum, from y. NaN where it fails.
    """
    v, _ = _value_function(problem, x, y, batch, solver)
    return oracles.lower_value(problem, x, y, batch) - v


def lower_curvature(
    problem: Problem, x: Upper, y: Lower, duals: Duals | None = None, batch: Data = None
) -> Scalar:
    """`λ_min(∂²g/∂y²)`, or of `∂²L/∂y²` along the active face where there is a lower set.

    Positive at a strict local minimum, the branch that a hypergradient at y belongs to; near zero
    where branches meet, or minimisers are many. Dense: for a y of up to a few hundred entries.

    Args:
        duals: multipliers of the lower set at y; when absent, found from the gradient at y.

    Returns:
        Infinity where the active rows leave no direction.
    """
    return curvatures(problem, x, y, duals, batch)[0][0]


def curvatures(problem: Problem, x: Upper, y: Lower, duals: Duals | None, batch: Data):
    """Eigenvalues of the Hessian along the active face, in rising order, and its eigenvectors.

    Directions that leave the face have infinite ones.
    """
    if isinstance(problem.lower_set, sets.Free):
        return jnp.linalg.eigh(oracles.dense_hessian(problem, x, y, batch))
    duals = lower.duals_at(problem, x, y, batch) if duals is None else duals
    H = system.hessian(problem, x, y, duals, batch)
    h, A, _, E = system.face(problem, x, y)
    mask = system.active(A, -h, duals.inequalities.astype(H.dtype), system.scale_of(H))
    rows = jnp.concatenate([jnp.where(mask[:, None], A, 0), E])
    P = jnp.eye(H.shape[0], dtype=H.dtype) - jnp.linalg.pinv(rows) @ rows
    along, basis = jnp.linalg.eigh((P + P.T) / 2)
    free = along > 0.5
    out = 2 * (1 + jnp.linalg.norm(H))  # above any eigenvalue of H
    reduced = (basis.T @ H @ basis) * jnp.outer(free, free).astype(H.dtype)
    values, vectors = jnp.linalg.eigh(reduced + jnp.diag(jnp.where(free, 0, out)))
    return jnp.where(values < out / 2, values, jnp.inf), basis @ vectors


# --- pieces --------------------------------------------------------------------------------


def _conditions(problem, x, y, duals: Duals, batch):
    """h, e and `∇_y L`."""
    h, e = system.constraints(problem, x, y)
    push = jax.grad(system.weighed, argnums=2)(problem, x, y, duals)
    return h, e, trees.add(oracles.lower_grad(problem, x, y, batch), push)


def _value_function(problem, x, y, batch, solver) -> tuple[Scalar, Upper]:
    """`v(x)` and `∇v = ∇_x L(x, y*, λ*)`."""
    if not measures.can_solve(problem, y, solver):
        nan = measures.unknown(x, y)
        return nan, trees.scale(nan, x)
    found = measures.solve(problem, x, y, batch, solver)
    duals = measures.duals_of(found) or lower.duals_at(problem, x, found.y, batch)
    push = jax.grad(system.weighed, argnums=1)(problem, x, found.y, duals)
    v_x = trees.add(oracles.lower_grad_x(problem, x, found.y, batch), push)
    return oracles.lower_value(problem, x, found.y, batch), v_x


def _joint(problem, x, y, batch: Batch, v, v_x):
    """f with its gradients, then `g − v` with its own."""
    gap = oracles.lower_value(problem, x, y, batch.lower) - v
    gap_x = trees.sub(oracles.lower_grad_x(problem, x, y, batch.lower), v_x)
    gap_y = oracles.lower_grad(problem, x, y, batch.lower)
    return oracles.upper_grads(problem, x, y, batch.upper), gap, gap_x, gap_y


def _on(h):
    """Which inequalities have a bound at all."""
    return h > -system.NEVER / 2


def _norm(vector) -> Scalar:
    return trees.norm(vector)


def _largest(*numbers) -> Scalar:
    dtype = trees.widest(numbers)
    return jnp.max(jnp.stack([number.astype(dtype) for number in numbers]))
