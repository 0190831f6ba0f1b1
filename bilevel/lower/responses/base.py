"""What every model of the best response looks like, and the gradient that trains one."""

import abc
import math
from typing import Any

import jax
from jaxtyping import Array, PyTree, Scalar

from bilevel import oracles, trees
from bilevel.fields import Checked
from bilevel.problem import Problem
from bilevel.typing import Data, Lower, RandomKey, Upper


class AbstractResponse(Checked):
    """A differentiable model `ŷ_φ(x)` of the lower solution `y*(x)`, with parameters φ.

    φ is any pytree of floating arrays. The model itself holds settings only.
    """

    @abc.abstractmethod
    def init(self, x: Upper, y0: Lower, key: RandomKey) -> Any:
        """Parameters φ, in buffers of their own, with `ŷ_φ(x)` at y0 or near it."""

    @abc.abstractmethod
    def __call__(self, phi: Any, x: Upper) -> Lower:
        """`ŷ_φ(x)`, shaped like the y0 of `init`."""

    @abc.abstractmethod
    def precondition(self, gradient: Any, x: Upper, sigma: Upper) -> Any:
        """The direction φ moves against, from a gradient at points of scale sigma around x."""


def fit_gradient(
    problem: Problem, response: AbstractResponse, phi: Any, points: PyTree[Array], batch: Data
) -> tuple[Any, Scalar]:
    """The gradient in φ of the mean of `g(x_i, ŷ_φ(x_i))` over points on a leading axis.

    `Σ_i (∂ŷ_φ(x_i)/∂φ)ᵀ ∇_y g(x_i, ŷ_φ(x_i)) / n`: one lower gradient a point, none in x. Where
    ŷ can match y* at every point it vanishes there only if the points determine φ: around one
    point alone the slope of ŷ stays as it was.

    Returns:
        The gradient, shaped like φ, and the root mean square of `‖∇_y g‖` over the points.
    """
    n = len(jax.tree.leaves(points)[0])
    ys, pull = jax.vjp(lambda phi: jax.vmap(response, (None, 0))(phi, points), phi)
    with oracles.mapped(n):
        g_y = jax.vmap(lambda x, y: oracles.lower_grad(problem, x, y, batch))(points, ys)
    (gradient,) = pull(trees.scale(1 / n, g_y))
    return gradient, trees.norm(g_y) / math.sqrt(n)
