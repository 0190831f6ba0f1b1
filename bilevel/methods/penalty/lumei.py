"""Lu and Mei's first-order penalty methods: Algorithm 2, and Algorithm 4 with lower constraints.

Lu, Mei. "First-order penalty methods for bilevel optimization". SIAM J. Optim. 34(2), 2024,
arXiv:2301.01716.
Differs from the paper: the nonsmooth parts of the losses are indicators of sets. The nested solver
is ours, and a step of the method is one step of its outer loop.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.fields import count, nonnegative
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.methods.base import AbstractMethod, LowerAssumption
from bilevel.methods.penalty.infeasibility import infeasibility, penalised
from bilevel.methods.penalty.minimax import proximal_saddle
from bilevel.methods.penalty.value_gap import ValueGap, ValueGapState, value_gap
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.schedules import Constant
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class LuMeiState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # (x, y) minimises f + ρ (P(x, y) − min P(x, ·))
    z: Lower  # follows a minimiser of P(x, ·)
    anchor: Lower | None  # the first z, for `TheorySolver`
    updates: Any  # memories of the x and y updates, for `NestedSolver`


class MinimaxSolver(eqx.Module):
    """One step towards a stationary point of `min_{x,y} max_z f + ρ (P(x, y) − P(x, z))`."""

    @abc.abstractmethod
    def init(self, x: Upper, y: Lower) -> LuMeiState:
        """The state before the first step, in buffers of its own."""

    @abc.abstractmethod
    def step(
        self, relaxed: Problem, state: LuMeiState, batch: Batch, eps: Scalar, constrained: bool
    ) -> tuple[LuMeiState, dict[str, Scalar]]:
        """A step on the problem with lower loss P; `constrained` if P includes constraints."""


class NestedSolver(MinimaxSolver):
    """Solves for z by `solver`; (x, y) takes one projected step on `f + ρ (P(x, y) − P(x, z))`.

    It has the same stationary points as `TheorySolver`, at a small fraction of the cost.

    Attributes:
        x_update, y_update: step sizes of at most about `1/(L_f + 2 ρ L_P)`, with
            `L_P = L_g + 2 μ L_h²`.
        solver: solver of `min P(x, ·)`, warm-started at the last z.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    solver: AbstractLowerSolver = eqx.field(default_factory=lambda: ToTolerance(1e-8))

    def init(self, x, y):
        updates = self.x_update.init(x), self.y_update.init(y)
        k = jnp.zeros((), jnp.int32)
        return LuMeiState(k, trees.copy(x), trees.copy(y), trees.copy(y), None, updates)

    def step(self, relaxed, state, batch, eps, constrained):
        k, x, y, z, anchor, updates = state
        loop = ValueGap(self.x_update, self.y_update, self.solver, Constant(1 / eps))
        new, info = loop.step(relaxed, ValueGapState(k, x, y, z, updates), batch)
        return LuMeiState(new.k, new.x, new.y, new.z, anchor, new.updates), info


class TheorySolver(MinimaxSolver):
    """The solver of the paper: proximal-point steps, each a strongly convex-concave saddle problem.

    It is slow: about 1e6 gradients where the nested solver takes 1e3.

    Attributes:
        upper_L, lower_L: Lipschitz constants of ∇f and ∇g, jointly in x and y.
        diameter: diameter of the simple part of the lower set, which must be bounded.
        constraint_L: `h_hi L(∇h) + L(h)²`, with h_hi the largest `|h|`; for Algorithm 4.
        max_steps: largest number of steps of each inner loop.
    """

    upper_L: ScalarLike = nonnegative()
    lower_L: ScalarLike = nonnegative()
    diameter: ScalarLike = nonnegative()
    constraint_L: ScalarLike = nonnegative(0.0)
    max_steps: int = count(10_000)

    def init(self, x, y):
        k = jnp.zeros((), jnp.int32)
        return LuMeiState(k, trees.copy(x), trees.copy(y), trees.copy(y), trees.copy(y), None)

    def step(self, relaxed, state, batch, eps, constrained):
        k, x, y, z, anchor, _ = state
        rho, mu = 1 / eps, 1 / eps**2
        numbers = self.upper_L, self.lower_L, self.diameter, self.constraint_L
        upper_L, lower_L, diameter, constraint_L = (jnp.asarray(n, eps.dtype) for n in numbers)
        L = upper_L + 2 * rho * lower_L + (4 * rho * mu * constraint_L if constrained else 0)

        def field(xy, z):
            x, y = xy
            _, f_x, f_y = oracles.upper_grads(relaxed, x, y, batch.upper)
            _, (q_x, q_y) = value_gap(relaxed, x, y, z, batch.lower)
            down = trees.scale(-rho, oracles.lower_grad(relaxed, x, z, batch.lower))
            return (trees.axpy(rho, q_x, f_x), trees.axpy(rho, q_y, f_y)), down

        def project(xy):
            return relaxed.upper_set.project(xy[0]), relaxed.lower_set.project(xy[1])

        found = proximal_saddle(
            field,
            (x, y),
            z,
            anchor,
            project_a=project,
            project_b=relaxed.lower_set.project,
            smoothness=L,
            diameter=diameter,
            accuracy=eps,
            tol=eps ** (5 / 2 if constrained else 3 / 2) / (k + 1).astype(eps.dtype),
            max_steps=self.max_steps,
        )
        move = 4 * L * trees.norm(trees.sub(found.a, (x, y)))
        (x, y), z = found.a, found.b
        value, f_x, _ = oracles.upper_grads(relaxed, x, y, batch.upper)
        gap, (q_x, q_y) = value_gap(relaxed, x, y, z, batch.lower)
        info = {
            "upper": value,
            "hypergrad_norm": trees.norm(trees.axpy(rho, q_x, f_x)),
            "lower_grad_norm": trees.norm(q_y),
            "lower_gap": gap,
            "penalty": rho,
            "move": move,
            "evaluations": found.evaluations,
        }
        return LuMeiState(k + 1, x, y, z, anchor, None), info


class LuMei(AbstractMethod):
    """Minimax penalty method for convex lower levels with constraints: first derivatives only.

    With `ρ = 1/ε` it finds a stationary point of `min_{x,y} max_z f + ρ (P(x, y) − P(x, z))`. If
    the lower set has a simple projection, P is the lower loss g (Algorithm 2). The constraints
    `h(x, y) ≤ 0` of any other set are added as a penalty, `P = g + μ ‖[h]_+‖²` with `μ = 1/ε²`
    (Algorithm 4). A tuple of sets is split: for example, a box is projected on and the rest is
    penalised. Assumes g and h convex in y (not strongly) and Slater's condition; equations are
    treated as two inequalities, which the theory does not cover. If the lower minimiser is not
    unique, the method finds the optimistic one. The paper's bounds to an ε-KKT point,
    `O(ε⁻⁴ log 1/ε)` gradients (Algorithm 2) and `O(ε⁻⁷ log 1/ε)` (Algorithm 4), are for
    `TheorySolver`, which needs bounded sets. Start with `P(x0, y0)` within ε of its minimum.
    Deterministic: a step uses one batch.

    Attributes:
        accuracy: ε, in (0, 1/4].
        solver: `NestedSolver` or `TheorySolver`; a step of the method is one step of its outer
            loop. The theory stops when `info["move"]`, `4 L_h` times the length of the last move
            of (x, y), is at most ε.
    """

    accuracy: ScalarLike = nonnegative(0.1)
    solver: MinimaxSolver = eqx.field(default_factory=NestedSolver)

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET}
    below: ClassVar[LowerAssumption] = LowerAssumption.CONVEX
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, 2 y (x, 3 y with the theory's solver)"
    paper: ClassVar[str] = "lu2024first"

    def __check_init__(self) -> None:
        if not isinstance(self.solver, MinimaxSolver):
            raise TypeError(f"solver is {self.solver!r}; a NestedSolver or TheorySolver is needed.")

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls after the solves, whose length is not known.

        A pass of `TheorySolver` takes one upper and four lower gradients.
        """
        return Price(upper_grad=1, lower_value=2, lower_grad=1, lower_grad_x=2)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> LuMeiState:
        return self.solver.init(x0, y0)

    def step(
        self, problem: Problem, state: LuMeiState, batch: Batch
    ) -> tuple[LuMeiState, dict[str, Scalar]]:
        eps = jnp.asarray(self.accuracy, trees.widest((state.x, state.y)))
        relaxed = penalised(problem, 1 / eps**2)
        state, info = self.solver.step(relaxed, state, batch, eps, relaxed is not problem)
        excess = infeasibility(problem, state.x, state.z)
        dual = 2 * excess / eps.astype(excess.dtype) ** 2
        return state, info | {"violation": excess, "dual": dual}
