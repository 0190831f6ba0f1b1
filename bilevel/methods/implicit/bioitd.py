"""BiO-ITD: differentiate through the lower steps.

Ji, Yang, Liang. "Bilevel optimization: convergence analysis and enhanced design". ICML 2021,
arXiv:2010.07962.
Differs from the paper: x is projected on `upper_set` when there is one, and the reverse pass may
stop early (Shaban et al., AISTATS 2019, arXiv:1810.10667).
"""

import math
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp

from bilevel import hypergrad, trees
from bilevel.methods.base import AbstractMethod, Constants, count
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class BiOITDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    y0: Lower | None  # start of every descent, unless it is warm-started
    update: Any  # memory of the x update


class BiOITD(AbstractMethod):
    """Double loop with iterative differentiation: no adjoint system, the lower steps unrolled.

    For a lower loss strongly convex in y. With `κ log(1/ε)` lower steps it needs `O(κ³ ε⁻¹)` upper
    gradients and `O(κ⁴ ε⁻¹)` of all other derivatives. A fixed number D of lower steps leaves a
    bias of order `(1 − step · μ)^D`; on a quadratic it is that of a Neumann series with D terms.

    Attributes:
        back: number of last lower steps that are differentiated; all if `None`.
        checkpoint: recompute each lower step in the reverse pass instead of storing it.
        warm: start each descent from the last y. If False, it starts from y0. Then x descends the
            function `f(x, y_D(x))`, with `y_D` the result of D steps from y0, for any lower loss.
            Bolte, Le, Pauwels, Vaiter, arXiv:2502.09074, call this the differentiable-programming
            strategy. With several lower minima this function may jump.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=5e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    lower_steps: int = count(20, grows=True)
    back: int | None = eqx.field(static=True, default=None)
    checkpoint: bool = eqx.field(static=True, default=False)
    warm: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y (2 y when cold; D + 1 while it differentiates)"
    rate: ClassVar[str] = "ε⁻¹, no noise"
    paper: ClassVar[str] = "ji2021bilevel"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps: half of 1/L for x, 1/L for y; `κ log(1000)` lower steps."""
        unrolled = math.ceil(math.log(1000) * constants.L / constants.mu)
        return cls(0.5 / constants.hyper_L, 1 / constants.L, unrolled)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=self.lower_steps)

    def price(self, problem: Problem) -> Price:
        back = self.lower_steps if self.back is None else min(self.back, self.lower_steps)
        return Price(upper_grad=1, lower_grad=self.lower_steps, hvp=back, cross=back)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> BiOITDState:
        x, y = trees.copy(x0), trees.copy(y0)
        start = None if self.warm else trees.copy(y0)
        return BiOITDState(jnp.zeros((), jnp.int32), x, y, start, self.x_update.init(x))

    def step(
        self, problem: Problem, state: BiOITDState, batch: Batch
    ) -> tuple[BiOITDState, dict[str, Scalar]]:
        k, x, y, y0, sx = state
        samples = as_samples(batch.lower, self.lower_steps)
        h = hypergrad.unrolled(
            problem,
            x,
            y if self.warm else y0,
            Batch(batch.upper, samples),
            update=self.y_update,
            steps=self.lower_steps,
            back=self.back,
            checkpoint=self.checkpoint,
        )
        x, sx = self.x_update.step(h.grad, sx, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
        }
        return BiOITDState(k + 1, problem.upper_set.project(x), h.y, y0, sx), info
