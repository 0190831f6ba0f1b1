"""What every hypergradient function returns."""

from typing import Any, NamedTuple

from bilevel.typing import Lower, Scalar, Upper


class HyperGrad(NamedTuple):
    """A hypergradient and the quantities computed along with it."""

    value: Scalar  # upper loss at the lower iterate used
    grad: Upper  # shaped like x
    v: Lower | None = None  # adjoint, shaped like y; None where the estimator has none
    residual: Scalar | None = None  # ‖H v − ∇_y f‖ of the adjoint system, where there is one
    lower_grad_norm: Scalar | None = None  # the last computed ‖∇_y g‖, of unrolled steps
    y: Any = None  # the lower iterate(s) reached, where the estimator moves them
    sc_margin: Scalar | None = None  # min_i max(λ_i, −h_i) of the active set: zero at a kink
