"""DS-BLO: normalised momentum with random perturbations of the lower loss and of x.

Khanduri, Tsaknakis, Zhang, Liu, Hong. "A doubly stochastically perturbed algorithm for linearly
constrained bilevel optimization". 2025, arXiv:2504.04545.
The paper's options I and II, a deterministic and a stochastic upper loss, differ only in the data.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import lower, trees
from bilevel.fields import fraction, nonnegative
from bilevel.hypergrad import AbstractOracle, ActiveSet
from bilevel.methods.base import AbstractMethod
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, RandomKey, Scalar, Upper


class DSBLOState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    last: Upper  # x before its last step
    y: Lower  # where the next lower solve starts
    m: Upper  # momentum
    key: RandomKey


class DSBLO(AbstractMethod):
    """Steps of bounded length along averaged hypergradients, each taken at a random point.

    With a new q at each step, `x̄` uniform on the segment of the last x step, and G_q the gradient
    through the active set of the lower problem with loss `g + qᵀy`,

        m ← β m + (1 − β) G_q(x̄),    x ← x − m / (γ₁ ‖m‖ + γ₂)

    so that no step is longer than 1/γ₁ or ‖m‖/γ₂. Assumes `y` in `A y + B x ≤ b` with an interior
    and independent active rows, g strongly convex in y, and f with bounded gradients; x is
    unconstrained. Finds a (δ, ε)-Goldstein point of `E_q[l_q]` in `Õ(δ⁻¹ ε⁻⁴)` steps, with `1 − β`
    of order ε² and `γ₁ δ` about the memory of the average in steps. A step costs a lower solve,
    which is not part of `price`, and one hypergradient.

    Attributes:
        decay: β; closer to one if the upper loss is sampled.
        cap: γ₁, one over the longest step.
        damping: γ₂, one over the step size for small m; in theory `4 γ₁ (σ + 2 L)`, with σ² the
            variance of G_q and L a bound on its norm.
        deviation: standard deviation of the Gaussian entries of q.
        oracle: hypergradient oracle; `hypergrad.ActiveSet` in the paper.
    """

    decay: ScalarLike = fraction(0.9)
    cap: ScalarLike = nonnegative(10.0)
    damping: ScalarLike = nonnegative(10.0)
    deviation: ScalarLike = nonnegative(1e-2)
    oracle: AbstractOracle = eqx.field(default_factory=ActiveSet)

    supports: ClassVar = frozenset({Structure.LOWER_LINEAR})
    memory: ClassVar[str] = "3 x, y, Hessian of y"
    rate: ClassVar[str] = "δ⁻¹ ε⁻²"
    paper: ClassVar[str] = "khanduri2025doubly"

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return self.oracle.price

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> DSBLOState:
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        k = jnp.zeros((), jnp.int32)
        return DSBLOState(k, x, trees.copy(x), y, trees.zeros_like(x), key)

    def step(
        self, problem: Problem, state: DSBLOState, batch: Batch
    ) -> tuple[DSBLOState, dict[str, Scalar]]:
        k, x, last, y, m, key = state
        key, of_place, of_q, of_oracle = jax.random.split(key, 4)
        place = trees.lerp(last, x, jax.random.uniform(of_place))
        q = lower.tilt(of_q, y, self.deviation)
        h = self.oracle(lower.tilted(problem, q), place, y, batch, of_oracle)
        m = trees.lerp(m, h.grad, jnp.where(k == 0, 1, 1 - jnp.asarray(self.decay)))
        size = trees.norm(m)
        cap, damping = (jnp.asarray(a, size.dtype) for a in (self.cap, self.damping))
        new = trees.axpy(-1 / (cap * size + damping), m, x)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
            "momentum": size,
        }
        return DSBLOState(k + 1, new, x, h.y, m, key), info
