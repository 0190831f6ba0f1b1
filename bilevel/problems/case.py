"""A problem together with its answers."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree, Scalar

from bilevel.problem import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem, where to start, and what to find.

    `y_star` is a closed form, or exact to rounding, and differentiable; the hyper-objective and its
    gradient follow from it.
    """

    name: str
    problem: Problem
    x0: PyTree[Array]
    y0: PyTree[Array]
    y_star: Callable[[PyTree], PyTree]
    lower_mu: float
    """Smallest eigenvalue of the Hessian `H = ∂²g/∂y²`, at x0 where it depends on x."""
    lower_L: float
    """Largest eigenvalue of H, likewise."""
    x_star: PyTree[Array] | None = None
    """The solution, where it is known."""
    data: tuple[PyTree, PyTree] | None = None
    """Rows of the upper and the lower loss on leading axes; `None` for a deterministic problem."""

    def value(self, x: PyTree) -> Scalar:
        """The hyper-objective `f(x, y*(x))`, over all data."""
        rows, _ = self.data or (None, None)
        return self.problem.upper(x, self.y_star(x), rows)

    def gradient(self, x: PyTree) -> PyTree:
        """The gradient of `value`, shaped like x."""
        return jax.grad(self.value)(x)
