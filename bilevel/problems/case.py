"""A problem together with its solution."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree, Scalar

from bilevel.problem import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem, a start, and the known solution.

    `y_star` is a closed form, or exact to rounding, and differentiable. The hyper-objective and its
    gradient are computed from it.
    """

    name: str
    problem: Problem
    x0: PyTree[Array]
    y0: PyTree[Array]
    y_star: Callable[[PyTree], PyTree]
    lower_mu: float
    """Smallest eigenvalue of the Hessian `H = ∂²g/∂y²`; at x0 if it depends on x."""
    lower_L: float
    """Largest eigenvalue of H; at x0 if it depends on x."""
    x_star: PyTree[Array] | None = None
    """The solution, or `None` if it is not known."""
    data: tuple[PyTree, PyTree] | None = None
    """Rows of the upper and the lower loss on leading axes; `None` for a deterministic problem."""

    def value(self, x: PyTree) -> Scalar:
        """The hyper-objective `f(x, y*(x))`, over all data."""
        rows, _ = self.data or (None, None)
        return self.problem.upper(x, self.y_star(x), rows)

    def gradient(self, x: PyTree) -> PyTree:
        """The gradient of `value`, shaped like x."""
        return jax.grad(self.value)(x)
