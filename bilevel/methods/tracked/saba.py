"""SABA: SOBA for finite sums, with a table of the last derivatives of every mini-batch.

Dagréou, Ablin, Vaiter, Moreau. "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms". NeurIPS 2022, arXiv:2201.13409.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

import dataclasses
from functools import partial
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel.estimators import SAGA, Slot, Table
from bilevel.methods.base import AbstractMethod, Constants, count
from bilevel.methods.tracked import tracked
from bilevel.methods.tracked.tracked import TrackedState
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class SABA(AbstractMethod):
    """Single loop on finite sums: constant steps, and no noise at the solution.

    The step of SOBA, with SAGA estimates of its five derivatives. Tables store ∇_x f and ∇_y f for
    each mini-batch of the upper data, and ∇_y g, the Hessian and the cross product for each
    mini-batch of the lower data, at the (x, y, v) where it was last drawn. A step costs as much as
    in SOBA; the tables start empty and are updated in place. For finite sums with a lower loss
    strongly convex in y. With steps of order `(n+m)^(−2/3)` the mean squared hypergradient is
    `O((n+m)^(2/3)/K)`. It decreases linearly if the hyper-objective satisfies the
    Polyak-Łojasiewicz condition.

    The mini-batches must be fixed: single rows (`batch_size=1`, any order), or those of
    `bl.Data(..., order="partition")`.

    Attributes:
        upper_slots, lower_slots: how many parts there are; read from the data when absent. Before
            `init` by hand, `method = method.for_data(data.batches)`.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    v_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    upper_slots: int | None = count(None)
    lower_slots: int | None = count(None)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "x, 2 y; upper_slots (x + y); lower_slots (x + 2 y)"
    rate: ClassVar[str] = "(n+m)^(2/3) ε⁻¹"
    paper: ClassVar[str] = "dagreou2022framework"

    @classmethod
    def theory(
        cls,
        constants: Constants,
        *,
        steps: int | None = None,
        upper_slots: int | None = None,
        lower_slots: int | None = None,
    ) -> Self:
        """Constant steps of order `slots^(−2/3)`, with or without a horizon.

        Give both the number of mini-batches in the data; the steps are those of full batches else.
        """
        scale = ((upper_slots or 1) + (lower_slots or 1) - 1) ** (-2 / 3)
        fast, slow = scale / constants.L, 0.1 * scale / constants.hyper_L
        return cls(slow, fast, fast, upper_slots, lower_slots)

    def for_data(self, batches: Batch) -> Self:
        return dataclasses.replace(
            self,
            upper_slots=self.upper_slots or batches.upper,
            lower_slots=self.lower_slots or batches.lower,
        )

    def check_parts(self, parts: Batch) -> None:
        for level in ("upper", "lower"):
            found, slots = getattr(parts, level), getattr(self, f"{level}_slots")
            if found is None:
                raise ValueError(
                    f"SABA stores every mini-batch, but those of Data.{level} are new at each "
                    "draw (shuffled rows, a sampler or a stream). Give arrays with batch_size=1, "
                    'or with order="partition".'
                )
            if found != slots:
                raise ValueError(
                    f"SABA.{level}_slots is {slots}, but Data.{level} has {found} parts "
                    f"(rows / batch_size). Set {level}_slots={found}."
                )

    @property
    def _loop(self) -> tracked.Tracked:
        return tracked.Tracked(self.x_update, self.y_update, self.v_update)

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        return tracked.PRICE

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> TrackedState:
        state, nothing = self._loop.init(x0, y0), Slot(None, jnp.int32(0))
        upper = SAGA(self.upper_slots or 1).init(tracked.like_upper, state.point, nothing)
        lower = SAGA(self.lower_slots or 1).init(tracked.like_lower, state.point, nothing)
        return state._replace(memory=(upper, lower))

    def step(
        self, problem: Problem, state: TrackedState, batch: Batch
    ) -> tuple[TrackedState, dict[str, Scalar]]:
        k, point, (upper, lower) = state.k, state.point, state.memory
        n, m = self._slots("upper", upper), self._slots("lower", lower)
        j, i = slot_of(batch.index, "upper", n), slot_of(batch.index, "lower", m)
        f, upper = SAGA(n).step(
            partial(tracked.upper_pieces, problem), point, Slot(batch.upper, j), upper, k
        )
        g, lower = SAGA(m).step(
            partial(tracked.lower_pieces, problem), point, Slot(batch.lower, i), lower, k
        )
        return self._loop.move(problem, state, tracked.joined(f, g), (upper, lower))

    def _slots(self, level: str, table: Table) -> int:
        """How many slots a level has, which its table was made for."""
        held = jax.tree.leaves(table.slots)[0].shape[0]
        slots = getattr(self, f"{level}_slots") or held
        if held != slots:
            raise ValueError(
                f"SABA.{level}_slots is {slots}, but the state has a table of {held}. Start it "
                "from method.for_data(data.batches).init(problem, x0, y0)."
            )
        return slots


def slot_of(index: Batch | None, level: str, slots: int) -> Int[Array, ""]:
    """The slot of a batch, from its row numbers."""
    rows = None if index is None else getattr(index, level)
    if slots == 1:
        return jnp.int32(0)
    if rows is None:
        raise ValueError(
            f"SABA.{level}_slots is {slots}, but Batch.index.{level} is None: pass the row numbers "
            "of the batch, Batch(upper, lower, Batch(upper_rows, lower_rows))."
        )
    rows = jnp.ravel(rows)
    return rows[0] // rows.size
