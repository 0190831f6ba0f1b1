"""SSIGD: the stochastic smoothed implicit gradient method.

Khanduri, Tsaknakis, Zhang, Liu, Liu, Zhang, Hong. "Linearly constrained bilevel optimization: a
smoothed implicit gradient approach". ICML 2023, PMLR 202:16291-16325.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import lower, trees
from bilevel.fields import nonnegative
from bilevel.hypergrad import AbstractOracle, ActiveSet
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class SSIGDState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # where the next lower solve starts
    q: Lower  # the tilt of the lower loss, drawn once
    key: RandomKey  # for oracles that draw at random
    update: Any  # memory of the x update


class SSIGD(AbstractMethod):
    """`x ← P_X(x − β G)`, G a stochastic gradient of `l_q` through the active set.

    l_q is the hyper-objective of the tilted lower loss `g + qᵀy`, with one small random q that
    makes it differentiable at any given x with probability one; `|l_q − l| ≤ L_f ‖q‖/μ`. The upper
    loss may be sampled; the lower problem is solved on its batch. Assumes g strongly convex in y
    over linear constraints with an interior and independent active rows. The theory is for a fixed
    polytope; here the polytope may depend on x and is differentiated.

    With l_q weakly convex and β of order `K^(−1/2)` the mean squared gradient of its Moreau
    envelope is `O(K^(−1/2))`. With l_q μ-strongly convex, `β = 1/(μ (k + 1))` gives an error of
    `O(log K / K)`. The gradient itself does not vanish at a kink. `price` is that of G, without the
    lower solve.

    Attributes:
        deviation: standard deviation of the Gaussian entries of q.
        oracle: hypergradient oracle; `hypergrad.ActiveSet` in the paper.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    deviation: ScalarLike = nonnegative(1e-3)
    oracle: AbstractOracle = eqx.field(default_factory=ActiveSet)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_LINEAR})
    memory: ClassVar[str] = "x, 2 y, Hessian of y"
    rate: ClassVar[str] = "ε⁻²"
    paper: ClassVar[str] = "khanduri2023linearly"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return self.oracle.price

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> SSIGDState:
        x, y = trees.copy(problem.upper_set.project(trees.copy(x0))), trees.copy(y0)
        key, now = jax.random.split(jax.random.key(0) if key is None else key)
        q = lower.tilt(now, y, self.deviation)
        return SSIGDState(jnp.zeros((), jnp.int32), x, y, q, key, self.x_update.init(x))

    def step(
        self, problem: Problem, state: SSIGDState, batch: Batch
    ) -> tuple[SSIGDState, dict[str, Scalar]]:
        k, x, y, q, key, memory = state
        key, now = jax.random.split(key)
        h = self.oracle(lower.tilted(problem, q), x, y, batch, now)
        x, memory = self.x_update.step(h.grad, memory, x, k)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
        }
        return SSIGDState(k + 1, problem.upper_set.project(x), h.y, q, key, memory), info
