"""PIGD: gradient descent with inexact hypergradients at randomly perturbed points.

Kornowski, Padmanabhan, Wang, Zhang, Sra. "First-order methods for linearly constrained bilevel
optimization". NeurIPS 2024, arXiv:2406.12771: perturbed inexact gradient descent.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import hypergrad, trees
from bilevel.fields import positive
from bilevel.hypergrad import AbstractOracle, TwoPenalty
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class PIGDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # where the next lower solve starts
    key: RandomKey
    update: Any  # memory of the x update


class PIGD(AbstractMethod):
    """`x ← x − η oracle(x + δ w)`, w uniform on the unit sphere, which avoids kinks.

    Assumes g strongly convex in y, inequalities linear or convex in y with independent active rows,
    and f and l Lipschitz. With an oracle of accuracy a, the δ-Goldstein subdifferential at a random
    iterate is within `ε + √(aL)` of zero after `O(√n L³ δ⁻¹ ε⁻⁴)` calls. The authors use Adam with
    these hypergradients; to do the same, pass it as `x_update`. `price` is that of the oracle
    without its lower solves, whose length is not known beforehand.

    Attributes:
        radius: δ.
        oracle: hypergradient oracle; `hypergrad.TwoPenalty` in the paper.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    radius: ScalarLike = positive(1e-2)
    oracle: AbstractOracle = eqx.field(default_factory=TwoPenalty)

    supports: ClassVar = frozenset({Structure.LOWER_LINEAR, Structure.LOWER_COUPLED})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y, Hessian of y"
    rate: ClassVar[str] = "√n δ⁻¹ ε⁻²"
    paper: ClassVar[str] = "kornowski2024first"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return self.oracle.price

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> PIGDState:
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        return PIGDState(jnp.zeros((), jnp.int32), x, y, key, self.x_update.init(x))

    def step(
        self, problem: Problem, state: PIGDState, batch: Batch
    ) -> tuple[PIGDState, dict[str, Scalar]]:
        k, x, y, key, memory = state
        key, of_w, of_oracle = jax.random.split(key, 3)
        near = trees.axpy(self.radius, hypergrad.sphere(of_w, x), x)
        h = self.oracle(problem, near, y, batch, of_oracle)
        x, memory = self.x_update.step(h.grad, memory, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
        }
        return PIGDState(k + 1, x, h.y, key, memory), info
