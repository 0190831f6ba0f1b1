"""SMBG: a few lower steps that stay on a branch of local minima, then an implicit gradient.

Bolte, Le, Pauwels, Vaiter. "Bilevel gradient methods and Morse parametric qualification". Math. of
Operations Research 2026, arXiv:2502.09074.
Differs from the paper: if the lower set is active at y, the gradient is that on its active face.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, lower, oracles, trees
from bilevel.fields import finite, optional
from bilevel.hypergrad import HyperGrad
from bilevel.linear import AbstractLinear, NormalCG
from bilevel.methods.base import LoopMethod, LowerAssumption, count
from bilevel.methods.implicit.nested import Nested
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem, Samples, Structure
from bilevel.sets import Free
from bilevel.updates import AbstractUpdate, as_update


class SMBG(LoopMethod):
    """Implicit gradients along a branch of lower local minima, without lower convexity.

    Assumes a lower loss that is Morse in y (no degenerate critical point). Its local minima form
    smooth branches `y_i(x)`, and x descends `f(x, y_i(x))` for the branch close to y0. y takes
    `lower_steps` warm-started gradient steps, so that it stays on this branch. The bias of the
    direction decreases like (contraction)^steps. Fixed points are exact stationary points of one
    branch; there is no rate. When x crosses a fold, where a branch ends in `∂²g/∂y² = 0`, the
    direction grows without bound and y moves to another branch.

    Attributes:
        linear: solver of the adjoint system, whose matrix is indefinite if y is not near a
            minimum. With a lower set the system is solved densely on the active face.
        floor: if `λ_min(∂²g/∂y²)` is below this value, shorten the x step by their ratio, at most
            a hundredfold. This guards against folds and costs the dense Hessian. Off if `None`.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    lower_steps: int = count(10, grows=True)
    linear: AbstractLinear = eqx.field(default_factory=lambda: NormalCG(20))
    floor: ScalarLike | None = finite(None, converter=optional())

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.NONCONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "bolte2026bilevel"

    @property
    def loop(self) -> Nested:
        return Nested(
            self.x_update,
            self.y_update,
            self.linear,
            self.lower_steps,
            hypergradient=self._on_branch,
        )

    def price(self, problem: Problem) -> Price:
        """With a lower set, one more lower gradient (for multipliers) and a dense Hessian."""
        price, guard = self.loop.price(problem), int(self.floor is not None)
        if isinstance(problem.lower_set, Free):
            return price._replace(dense_hessian=guard)
        return price._replace(hvp=0, lower_grad=price.lower_grad + 1, dense_hessian=1 + guard)

    def _on_branch(self, problem: Problem, x, y, batch: Batch, **settings) -> HyperGrad:
        sample = batch.lower[0] if isinstance(batch.lower, Samples) else batch.lower
        if isinstance(problem.lower_set, Free):
            h = hypergrad.implicit(problem, x, y, batch, **settings)
        else:
            duals = lower.duals_at(problem, x, y, sample)
            h = hypergrad.kkt(problem, x, y, duals, Batch(batch.upper, sample))
        if self.floor is None:
            return h
        lowest = jnp.linalg.eigvalsh(oracles.dense_hessian(problem, x, y, sample))[0]
        shorter = jnp.clip(lowest / jnp.asarray(self.floor, lowest.dtype), 0.01, 1)
        return h._replace(grad=trees.scale(shorter, h.grad))
