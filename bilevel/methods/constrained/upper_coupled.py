"""Wrappers that add upper constraints `h(x, y*(x)) <= 0` to any method.

The cost of a constraint is added to the upper loss, so the adjoint system of the inner method
includes its gradient and the method needs no change. Standard techniques: Nocedal, Wright.
"Numerical optimization", chapters 17 and 19. Springer 2006.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, ScalarLike

from bilevel import trees
from bilevel.fields import NONNEGATIVE, nonnegative
from bilevel.lower.barrier import finite
from bilevel.methods.base import AbstractMethod, Unsupported, count
from bilevel.oracles import Price
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Draws, Problem, Structure
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.sets import AbstractSet, Free, Intersection
from bilevel.typing import Lower, Scalar, Upper

SETTLED = 1e-6  # times 1 + ‖ν‖: a change of ν that counts as none


class Values(NamedTuple):
    """Constraint values, or their multipliers, as vectors."""

    inequalities: Array  # h <= 0
    equalities: Array  # e = 0


class ChargedState(NamedTuple):
    inner: Any  # state of the inner method
    duals: Values  # ν
    weight: Scalar  # weight of the penalty or barrier
    violation: Scalar  # at the last update of ν; huge before the first

    @property
    def k(self) -> Scalar:
        return self.inner.k

    @property
    def x(self) -> Upper:
        return self.inner.x

    @property
    def y(self) -> Lower:
        return self.inner.y


class Charged(AbstractMethod):
    """Runs a method on the problem with upper loss `f + cost(h(x, y))` and without h.

    Fixed sets of x that have a projection are passed on to the inner method.
    """

    method: eqx.AbstractVar[AbstractMethod]

    supports: ClassVar = LOWER_CONSTRAINTS | {Structure.UPPER_SET, Structure.UPPER_COUPLED}
    memory: ClassVar[str] = "that of the inner method, ν"
    paper: ClassVar[str] = "nocedal2006numerical"

    @staticmethod
    @abc.abstractmethod
    def cost(values: Values, duals: Values, weight: Scalar) -> Scalar:
        """The cost of the constraint values."""

    @abc.abstractmethod
    def weight_at(self, k: Scalar) -> Scalar:
        """The weight at step k."""

    def renewed(self, state: ChargedState, values: Values) -> ChargedState:
        """The state with updated multipliers and weight after a step, given the new values."""
        weight = self.weight_at(state.k).astype(state.weight.dtype)
        return state._replace(weight=weight, violation=_excess(values))

    def settled(self, state: ChargedState, values: Values) -> Bool[Array, ""]:
        """Whether the inner method gets the same problem again."""
        return jnp.asarray(True)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.method.check(_without_costs(problem))

    def for_data(self, batches: Batch) -> Self:
        return dataclasses.replace(self, method=self.method.for_data(batches))

    def check_parts(self, parts: Batch) -> None:
        self.method.check_parts(parts)

    def draws(self, problem: Problem) -> Draws:
        return self.method.draws(_without_costs(problem))

    def price(self, problem: Problem) -> Price:
        """The price of the inner method; the constraints are differentiated together with f."""
        return self.method.price(_without_costs(problem))

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> ChargedState:
        inner = self.method.init(_without_costs(problem), x0, y0, key=key)
        duals = trees.zeros_like(constraint_values(problem.upper_set, x0, y0))
        dtype = trees.widest(duals)
        violation = jnp.full((), jnp.finfo(dtype).max, dtype)
        weight = jnp.array(self.weight_at(jnp.zeros((), jnp.int32)), violation.dtype)
        return ChargedState(inner, duals, weight, violation)

    def step(
        self, problem: Problem, state: ChargedState, batch: Batch
    ) -> tuple[ChargedState, dict[str, Scalar]]:
        charged = self.charged(problem, state.duals, state.weight)
        inner, info = self.method.step(charged, state.inner, batch)
        values = constraint_values(problem.upper_set, inner.x, inner.y)
        for done in info.keys() & {"exhausted", "settled"}:  # with these multipliers alone
            info[done] = jnp.where(self.settled(state, values), info[done], 0)
        state = self.renewed(state._replace(inner=inner), values)
        extra_info = {"violation": _excess(values), "dual": trees.norm(state.duals)}
        return state, info | extra_info | {"weight": state.weight}

    def charged(self, problem: Problem, duals: Values, weight: Scalar) -> Problem:
        """The problem for the inner method."""
        cost = _Charge(problem.upper, problem.upper_set, duals, weight, type(self).cost)
        return _without_costs(problem, cost)


class AugmentedLagrangian(Charged):
    """Upper constraints `h(x, y*(x)) <= 0` by an augmented Lagrangian, around any method.

    The inner method minimises `f + (‖[ν + ρ h]_+‖² − ‖ν‖²)/(2ρ)` for `period` of its steps; then
    `ν ← [ν + ρ h(x, y)]_+`. Exact for a finite ρ: ν converges linearly to the multipliers, faster
    for larger ρ. The curvature of the penalty grows with ρ, so the x steps must be small enough for
    it. The inner method may treat the lower level in any way, but its y must follow y*(x) and it
    must differentiate f at y. If the lower solution is not unique, a constraint on y selects among
    the solutions.

    Attributes:
        method: any of `bilevel.methods` that solves the problem without the constraint.
        penalty: the initial ρ.
        growth: factor of ρ whenever the violation has not decreased by a factor of 4.
        period: number of steps of the inner method between updates of ν.
    """

    method: AbstractMethod
    penalty: ScalarLike = nonnegative(10.0)
    growth: ScalarLike = nonnegative(1.0)
    period: int = count(100)

    @staticmethod
    def cost(values: Values, duals: Values, weight: Scalar) -> Scalar:
        (h, e), (nu, mu) = values, duals
        signed = jnp.sum(jax.nn.relu(nu + weight * h) ** 2 - nu**2) / (2 * weight)
        return signed + jnp.sum(mu * e) + weight * jnp.sum(e**2) / 2

    def weight_at(self, k: Scalar) -> Scalar:
        return jnp.asarray(self.penalty)

    def renewed(self, state: ChargedState, values: Values) -> ChargedState:
        now, weight = state.k % self.period == 0, state.weight
        violation, raised = _excess(values), _raised(state, values)
        slow = (violation > state.violation / 4) & (violation > jnp.finfo(weight.dtype).eps ** 0.5)
        grown = jnp.where(slow, weight * jnp.asarray(self.growth, weight.dtype), weight)
        inner = state.inner
        if hasattr(inner, "exhausted"):  # with new multipliers there is something to do again
            inner = inner._replace(exhausted=jnp.asarray(False))
        new = state._replace(inner=inner, duals=raised, weight=grown, violation=violation)
        return trees.where(now, new, state)

    def settled(self, state: ChargedState, values: Values) -> Bool[Array, ""]:
        change = trees.norm(trees.sub(_raised(state, values), state.duals))
        return change <= SETTLED * (1 + trees.norm(state.duals))


def _raised(state: ChargedState, values: Values) -> Values:
    """`[ν + ρ h]_+`, and `μ + ρ e`."""
    return Values(
        jax.nn.relu(state.duals.inequalities + state.weight * values.inequalities),
        state.duals.equalities + state.weight * values.equalities,
    )


class QuadraticPenalty(Charged):
    """Upper constraints `h(x, y*(x)) <= 0` by a quadratic penalty, around any method.

    The inner method minimises `f + (ρ/2) ‖[h]_+‖²`. The constraint is violated by about ν/ρ, with ν
    its multiplier. The curvature of the penalty grows with ρ, so the x steps must be small enough
    for it.

    Attributes:
        method: any of `bilevel.methods` that solves the problem without the constraint.
        penalty: ρ.
    """

    method: AbstractMethod
    penalty: AbstractSchedule = eqx.field(
        default=100.0, converter=as_schedule, metadata=NONNEGATIVE
    )

    @staticmethod
    def cost(values: Values, duals: Values, weight: Scalar) -> Scalar:
        h, e = values
        return weight * (jnp.sum(jax.nn.relu(h) ** 2) + jnp.sum(e**2)) / 2

    def weight_at(self, k: Scalar) -> Scalar:
        return self.penalty(k)


class UpperBarrier(Charged):
    """Upper constraints `h(x, y*(x)) <= 0` by a logarithmic barrier, around any method.

    The inner method minimises `f − t Σ log(−h)`. It needs a start with `h(x0, y0) < 0` and x steps
    small enough to stay in the interior, or a method with a line search, such as MAID: on and
    outside the boundary the loss is infinite or NaN. t/(−h) tends to the multipliers; the error is
    of order t. Equations have no barrier and raise an error.

    Attributes:
        method: any of `bilevel.methods` that solves the problem without the constraint.
        t: weight of the barrier.
    """

    method: AbstractMethod
    t: AbstractSchedule = eqx.field(default=1e-2, converter=as_schedule, metadata=NONNEGATIVE)

    @staticmethod
    def cost(values: Values, duals: Values, weight: Scalar) -> Scalar:
        return -weight * jnp.sum(jnp.log(-values.inequalities))

    def weight_at(self, k: Scalar) -> Scalar:
        return self.t(k)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if any(member.traits().equalities for member in _parted(problem.upper_set)[1]):
            raise Unsupported(
                "UpperBarrier cannot solve this problem: upper_set has equations, which have no "
                "interior. Methods that handle it: AugmentedLagrangian, QuadraticPenalty."
            )


class _Charge(eqx.Module):
    upper: Callable
    upper_set: AbstractSet
    duals: Values
    weight: Scalar
    cost: Callable = eqx.field(static=True)

    def __call__(self, x, y, batch) -> Scalar:
        f = self.upper(x, y, batch)
        values = constraint_values(self.upper_set, x, y)
        return f + self.cost(values, self.duals, self.weight).astype(f.dtype)


def constraint_values(upper_set: AbstractSet, x: Upper, y: Lower) -> Values:
    """The values of the upper constraints that are part of the cost."""
    charged = _parted(upper_set)[1]
    found = [m.constraints(y, x) if m.moves else m.constraints(x) for m in charged]
    h, e = [c.inequalities for c in found], [c.equalities for c in found]
    dtype = trees.widest((h, e, x, y))

    def stacked(tree) -> Array:
        pieces = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate([jnp.zeros(0, dtype), *pieces])

    return Values(stacked(finite(h)), stacked(e))


def _parted(upper_set: AbstractSet) -> tuple[AbstractSet, tuple[AbstractSet, ...]]:
    """The set that x is projected on, and the sets that are part of the cost."""
    members = upper_set.sets if isinstance(upper_set, Intersection) else (upper_set,)
    fixed = tuple(member for member in members if not member.moves)
    moving = tuple(member for member in members if member.moves)
    kept = Intersection(fixed) if fixed else Free()
    if kept.projectable:
        return kept, moving
    return fixed[0], fixed[1:] + moving


def _without_costs(problem: Problem, upper: Callable | None = None) -> Problem:
    """The problem without the constraints in the cost, and with another upper loss."""
    return problem.replace(
        upper=problem.upper if upper is None else upper,
        upper_set=_parted(problem.upper_set)[0],
        lower_step=None,
    )


def _excess(values: Values) -> Scalar:
    return trees.norm((jax.nn.relu(values.inequalities), values.equalities))
