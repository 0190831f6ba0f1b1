"""Update rules for a variable. They are pytrees: a new step size does not recompile."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, ScalarLike

from bilevel import trees
from bilevel.fields import NONNEGATIVE, Checked, as_number, fraction, nonnegative, positive
from bilevel.schedules import AbstractSchedule, Count, as_schedule, is_schedule, shown, times


class AbstractUpdate(Checked):
    """Moves a tree against a direction and keeps its dtypes.

    `k` is the step number passed to schedules; each method documents which steps it counts.
    """

    @abc.abstractmethod
    def init(self, tree: PyTree) -> Any:
        """The initial memory (state) of the update."""

    @abc.abstractmethod
    def step(self, direction: PyTree, memory: Any, tree: PyTree, k: Count) -> tuple[PyTree, Any]:
        """The moved tree and the new memory."""


class SGD(AbstractUpdate):
    """Gradient descent `x ← x − a_k d`: `step_size` is a_k, a number or a schedule."""

    step_size: AbstractSchedule = eqx.field(converter=as_schedule, metadata=NONNEGATIVE)

    def init(self, tree):
        return None

    def step(self, direction, memory, tree, k):
        return trees.axpy(-self.step_size(k), direction, tree), memory

    def __repr__(self) -> str:
        return f"SGD({self.step_size!r})"


class Momentum(AbstractUpdate):
    """Heavy ball: `m ← b m + d`, `x ← x − a_k m`; with `nesterov`, `x ← x − a_k (b m + d)`.

    `step_size` is a_k, a number or a schedule, and `decay` is b.
    """

    step_size: AbstractSchedule = eqx.field(converter=as_schedule, metadata=NONNEGATIVE)
    decay: ScalarLike = fraction(0.9)
    nesterov: bool = eqx.field(static=True, default=False)

    def init(self, tree):
        return trees.zeros_like(tree)

    def step(self, direction, memory, tree, k):
        memory = trees.axpy(self.decay, memory, trees.cast_like(direction, memory))
        ahead = trees.axpy(self.decay, memory, direction) if self.nesterov else memory
        return trees.axpy(-self.step_size(k), ahead, tree), memory

    def __repr__(self) -> str:
        nesterov = ", nesterov=True" if self.nesterov else ""
        return f"Momentum({self.step_size!r}, decay={shown(self.decay)}{nesterov})"


class Optax(AbstractUpdate):
    """Any optax transformation; it counts its own steps.

    Create the transformation once and reuse it: a second `optax.adam(0.1)` triggers a
    recompilation. `FromOptax(optax.adam, 0.1)` does not, and works under `vmap` over its numbers.
    """

    transformation: optax.GradientTransformation = eqx.field(static=True)

    def init(self, tree):
        with jax.numpy_dtype_promotion("standard"):
            return self.transformation.init(tree)

    def step(self, direction, memory, tree, k):
        with jax.numpy_dtype_promotion("standard"):
            change, memory = self.transformation.update(
                trees.cast_like(direction, tree), memory, tree
            )
        return trees.add(tree, trees.cast_like(change, tree)), memory

    def __repr__(self) -> str:
        name = getattr(self.transformation.update, "__qualname__", "transformation")
        return f"Optax({name.split('.')[0]})"


class FromOptax(AbstractUpdate):
    """An optax transformation whose numbers are leaves of the pytree: `FromOptax(optax.adam, 0.1)`.

    A new number does not recompile, and a sweep is one `vmap`. A number may be a schedule of the
    step number: `FromOptax(optax.adamw, Cosine(1e-3, 1000), weight_decay=0.1)`. The `numbers` go to
    the factory by position, those in `named` by name. It needs a factory that only does arithmetic
    with its numbers. Use `Optax` for one that branches on them or takes functions.
    """

    factory: Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    numbers: tuple
    named: dict

    def __init__(
        self,
        factory,
        *numbers: ScalarLike | AbstractSchedule,
        **named: ScalarLike | AbstractSchedule,
    ):
        if not callable(factory):
            raise TypeError(
                f"FromOptax is given {type(factory).__name__}; a factory and its numbers are "
                "needed, such as FromOptax(optax.adam, 0.1)."
            )
        self.factory = cast("Callable[..., optax.GradientTransformation]", factory)
        self.numbers = tuple(map(_number_or_schedule, numbers))
        self.named = {name: _number_or_schedule(number) for name, number in named.items()}

    def _built(self, k: Count) -> Optax:
        numbers, named = jax.tree.map(
            lambda number: number(k) if is_schedule(number) else number,
            (self.numbers, self.named),
            is_leaf=is_schedule,
        )
        return Optax(self.factory(*numbers, **named))

    def init(self, tree):
        return self._built(0).init(tree)

    def step(self, direction, memory, tree, k):
        moved, new = self._built(k).step(direction, memory, tree, k)
        return moved, trees.cast_like(new, memory)

    def __repr__(self) -> str:
        arguments = [_shown(number) for number in self.numbers]
        arguments += [f"{name}={_shown(number)}" for name, number in self.named.items()]
        name = getattr(self.factory, "__name__", type(self.factory).__name__)
        return f"{name}({', '.join(arguments)})"


def _number_or_schedule(value: ScalarLike | AbstractSchedule) -> Any:
    return value if is_schedule(value) else as_number(cast("ScalarLike", value))


def _shown(value: Any) -> str:
    return repr(value) if is_schedule(value) else shown(value)


class Scaled(AbstractUpdate):
    """`factor` times the move of another update."""

    update: AbstractUpdate
    factor: ScalarLike = nonnegative()

    def init(self, tree):
        return self.update.init(tree)

    def step(self, direction, memory, tree, k):
        moved, memory = self.update.step(direction, memory, tree, k)
        return trees.lerp(tree, moved, self.factor), memory


class Clipped(AbstractUpdate):
    """Another update, of a direction that is scaled down to a norm where it is longer.

    The norm is that of the whole tree. Known as gradient clipping by the global norm.
    """

    update: AbstractUpdate
    norm: ScalarLike = positive()

    def init(self, tree):
        return self.update.init(tree)

    def step(self, direction, memory, tree, k):
        length = trees.norm(direction)
        longest = jnp.asarray(self.norm, length.dtype)
        factor = jnp.where(length > longest, longest / length, jnp.ones_like(length))
        return self.update.step(trees.scale(factor, direction), memory, tree, k)


class Each(AbstractUpdate):
    """A tuple or NamedTuple, each field moved by an update of its own.

    Attributes:
        updates: a tuple of updates, one for each field.
    """

    updates: Any

    def init(self, tree):
        return tuple(u.init(part) for u, part in zip(self.updates, tree, strict=True))

    def step(self, direction, memory, tree, k):
        parts = zip(self.updates, direction, memory, tree, strict=True)
        moved, new = zip(*(u.step(d, m, part, k) for u, d, m, part in parts), strict=True)
        return tree._make(moved) if hasattr(tree, "_make") else moved, new


def scaled(update: AbstractUpdate, factor: ScalarLike) -> AbstractUpdate:
    """An update whose moves are `factor` times as long."""
    if isinstance(update, SGD | Momentum):
        return dataclasses.replace(update, step_size=times(factor, update.step_size))
    return Scaled(update, factor)


def as_update(value: AbstractUpdate | optax.GradientTransformation | Any) -> AbstractUpdate:
    """`SGD` of a `value` that is a number or a schedule, `Optax` of an optax transformation."""
    if isinstance(value, AbstractUpdate):
        return value
    if isinstance(value, optax.GradientTransformation):
        return Optax(value)
    return SGD(value)
