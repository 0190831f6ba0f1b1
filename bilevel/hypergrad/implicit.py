"""Hypergradients from the implicit function theorem."""

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.linear import CG, AbstractLinear, Neumann
from bilevel.problem import Batch, Problem, RepeatedBatch, Samples
from bilevel.typing import Lower, Upper


def implicit(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    linear: AbstractLinear | None = None,
    v0: Lower | None = None,
    key=None,
) -> HyperGrad:
    """Hypergradient from the implicit function theorem, at a given lower iterate.

    Solves `H v = ∇_y f`, `H = ∂²g/∂y²`, and returns `∇_x f − (∂²g/∂x∂y) v`. Exact when y
    minimises the lower loss and the linear solve is exact; the error grows linearly with both
    residuals.

    Args:
        x, y: any pytrees of floating arrays.
        batch: `Batch(upper, lower)`. A `Samples` handle as `lower` gives the cross product
            sample 0 and the linear solver the samples after it, so that they are independent.
            A plain batch is used for both.
        linear: solver for the adjoint system; `CG(20)` if `None`. Use `Dense()` if y has at most
            a few hundred entries.
        v0: starting adjoint, shaped like y; zeros if `None`. Pass the last `v` to warm-start.
        key: a random key, for linear solvers that draw at random.

    Returns:
        `HyperGrad(value, grad, v, residual)`: scalar; shaped like x; shaped like y;
        `‖H v − ∇_y f‖`, a scalar.

    Reference: Pedregosa. "Hyperparameter optimization with approximate gradient". ICML 2016,
    arXiv:1602.02355.
    """
    linear = CG(20) if linear is None else linear
    samples = batch.lower if isinstance(batch.lower, Samples) else RepeatedBatch(batch.lower)
    value, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
    rest = samples.skip(1)
    operator = oracles.hessian(
        problem, x, y, RepeatedBatch(rest[0]) if linear.samples == 1 else rest
    )
    v = linear.solve(operator, f_y, v0=v0, key=key)
    cross = oracles.cross(problem, x, y, v, samples[0])
    with oracles.uncounted():  # the compiler removes it if the residual is not used
        residual = trees.norm(trees.sub(oracles.hvp(problem, x, y, v, samples[0]), f_y))
    return HyperGrad(value, trees.sub(f_x, cross), v, residual)


def neumann(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    steps: int = 10,
    step_size=0.1,
) -> HyperGrad:
    """Implicit hypergradient with `H⁻¹` replaced by a series of `steps + 1` terms.

    The error is at most of order `(1 − step_size · μ)^(steps+1)` when `step_size ≤ 1/L`.

    Reference: Lorraine, Vicol, Duvenaud. "Optimizing millions of hyperparameters by implicit
    differentiation". AISTATS 2020, arXiv:1911.02590.
    """
    return implicit(problem, x, y, batch, linear=Neumann(steps, step_size))


def closed_form_or_implicit(problem: Problem, x, y, batch: Batch, **settings) -> HyperGrad:
    """The hypergradient that the problem declares, else `implicit` with these settings."""
    if problem.hypergradient is None:
        return implicit(problem, x, y, batch, **settings)
    first = batch.lower[0] if isinstance(batch.lower, Samples) else batch.lower
    value = oracles.upper_value(problem, x, y, batch.upper)
    return HyperGrad(value, problem.hypergradient(x, y, Batch(batch.upper, first)))
