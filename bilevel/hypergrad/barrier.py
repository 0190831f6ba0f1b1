"""Hypergradient of a lower level whose inequalities are replaced by a logarithmic barrier."""

from jaxtyping import ScalarLike

from bilevel.hypergrad.null_space import null_space
from bilevel.hypergrad.result import HyperGrad
from bilevel.linear import AbstractLinear, Dense
from bilevel.lower.barrier import with_barrier
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper


def barrier(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    t: ScalarLike,
    linear: AbstractLinear | None = None,
) -> HyperGrad:
    """The gradient of `l_t(x) = f(x, y_t(x))`, y_t the minimiser of `g − t Σ log(−h_i)`.

    This is the implicit hypergradient with `g_t = g − t Σ log(−h_i)` in place of g. Lower equations
    are handled by `null_space`. It is exact if y is y_t(x). As t → 0 it tends to the hypergradient
    wherever the lower solution is differentiable in x (independent active constraints, positive
    multipliers). At a jump of the lower solution it grows like 1/t.

    Args:
        x, y: any pytrees of floating arrays; y strictly feasible, from `lower.LogBarrier(t)`.
        batch: `Batch(upper, lower)`; each half is passed to its loss unchanged.
        t: weight of the barrier.
        linear: solver for the adjoint system; `Dense()` if `None`, because the barrier's Hessian
            has eigenvalues from μ to about 1/t.

    Returns:
        `HyperGrad(value, grad, v, residual)`, as `implicit` returns it.

    Reference: Jiang, Li, Hong, Zhang. "A barrier function approach for bilevel optimization with
    coupled lower-level constraints: formulation, approximation and algorithms". 2024,
    arXiv:2410.10670.
    """
    linear = Dense() if linear is None else linear
    return null_space(with_barrier(problem, t), x, y, batch, linear=linear)
