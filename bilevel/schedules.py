"""Schedules: pytrees that map the step number k = 0, 1, … to a scalar."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree, Scalar, ScalarLike

from bilevel.fields import Checked, as_number

Count = Int[Array, ""] | int


class AbstractSchedule(Checked):
    """A scalar as a function of the step number."""

    @abc.abstractmethod
    def __call__(self, k: Count) -> Scalar:
        """The value at step k."""

    @property
    def head(self) -> Any:
        """A number that decides the sign of all others; `None` where it takes a computation."""
        return None


def _array(value: ScalarLike) -> Array:
    """A floating array, so that an integer does not make a schedule compute with integers."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        value = float(value)
    value = as_number(value)
    inexact = jnp.issubdtype(value.dtype, jnp.inexact)
    return value if inexact else value.astype(jnp.result_type(float))


class Constant(AbstractSchedule):
    """The same value at every step. A plain number is converted to this schedule."""

    value: ScalarLike = eqx.field(converter=_array)

    @property
    def head(self):
        return self.value

    def __call__(self, k: Count) -> Scalar:
        return jnp.asarray(self.value)

    def __repr__(self) -> str:
        return shown(self.value)


class Polynomial(AbstractSchedule):
    """`scale · (k + start)^(−power)`; it grows if the power is negative."""

    scale: ScalarLike = eqx.field(converter=_array)
    power: ScalarLike = eqx.field(converter=_array)
    start: ScalarLike = eqx.field(converter=_array, default=1.0)

    @property
    def head(self):
        return self.scale

    def __call__(self, k: Count) -> Scalar:
        scale, power, start = (jnp.asarray(a) for a in (self.scale, self.power, self.start))
        k = jnp.asarray(k).astype(scale.dtype)
        return scale * (k + start.astype(scale.dtype)) ** -power.astype(scale.dtype)

    def __repr__(self) -> str:
        return f"{shown(self.scale)}·(k+{shown(self.start)})^{shown(-jnp.asarray(self.power))}"


class Linear(AbstractSchedule):
    """`start + slope · k`: the additive penalty rule of F2SA."""

    start: ScalarLike = eqx.field(converter=_array)
    slope: ScalarLike = eqx.field(converter=_array)

    @property
    def head(self):
        return self.start

    def __call__(self, k: Count) -> Scalar:
        start, slope = jnp.asarray(self.start), jnp.asarray(self.slope)
        return start + slope.astype(start.dtype) * jnp.asarray(k).astype(start.dtype)

    def __repr__(self) -> str:
        return f"{shown(self.start)}+{shown(self.slope)}·k"


class Cosine(AbstractSchedule):
    """From `start` to `end` along half a cosine over `steps` steps, then constant."""

    start: ScalarLike = eqx.field(converter=_array)
    steps: ScalarLike = eqx.field(converter=_array)
    end: ScalarLike = eqx.field(converter=_array, default=0.0)

    @property
    def head(self):
        return self.start

    def __call__(self, k: Count) -> Scalar:
        start = jnp.asarray(self.start)
        end = jnp.asarray(self.end).astype(start.dtype)
        k, steps = jnp.asarray(k).astype(start.dtype), jnp.asarray(self.steps).astype(start.dtype)
        return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(k / steps, 1))) / 2

    def __repr__(self) -> str:
        return f"Cosine({shown(self.start)} to {shown(self.end)} in {shown(self.steps)})"


class WarmUp(AbstractSchedule):
    """From 0 along a line to the start of another schedule, which then runs from its own k = 0.

    `k/steps · s(0)` for k < `steps`, then `s(k − steps)`; the first step does not move. With
    `Cosine` or `Linear` the same as `get_cosine_schedule_with_warmup` and
    `get_linear_schedule_with_warmup` of `transformers`.
    """

    schedule: AbstractSchedule = eqx.field(converter=lambda value: as_schedule(value))
    steps: ScalarLike = eqx.field(converter=_array)

    @property
    def head(self):
        return self.schedule.head

    def __call__(self, k: Count) -> Scalar:
        steps = jnp.asarray(self.steps)
        k = jnp.asarray(k).astype(steps.dtype)
        value = self.schedule(jnp.maximum(k - steps, 0))
        share = jnp.where(k < steps, k / jnp.maximum(steps, 1), 1)
        return share.astype(value.dtype) * value

    def __repr__(self) -> str:
        return f"WarmUp({self.schedule!r} after {shown(self.steps)})"


class Function(AbstractSchedule):
    """Any function `fn` of the step number, such as an optax schedule.

    Create the function once and reuse it: a new function object triggers a recompilation.
    """

    fn: Partial

    def __call__(self, k: Count) -> Scalar:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            return jnp.asarray(self.fn(k))

    def __repr__(self) -> str:
        return getattr(self.fn.func, "__name__", "function")


def as_schedule(value: AbstractSchedule | ScalarLike | Callable) -> AbstractSchedule:
    """The `value` as a schedule: a number becomes `Constant`, a function of k `Function`.

    Raises:
        TypeError: a class, or a function that does not take a step number to a number.
    """
    if isinstance(value, AbstractSchedule):
        return value
    if isinstance(value, type):
        raise TypeError(f"the class {value.__name__} is no step size; create one, with a number.")
    if not callable(value):
        if isinstance(value, str) or value is None:
            raise TypeError(f"{value!r} is no step size; a number, a schedule or an update is.")
        return Constant(value)
    schedule = Function(value if isinstance(value, Partial) else Partial(value))
    _check_function(schedule)
    return schedule


def _check_function(schedule: "Function") -> None:
    """A function of the step number returns one number."""
    mend = (
        "A number, a function of the step number or an update is needed; a factory such as "
        "optax.adam is called first: optax.adam(0.1)."
    )
    returned = []

    def called(k):
        with jax.numpy_dtype_promotion("standard"):
            returned.append(schedule.fn(k))
        return as_number(returned[0])

    told = f"{schedule!r} is no schedule: called with a step number it"
    try:
        out = jax.eval_shape(called, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        if returned:
            raise TypeError(f"{told} returned {type(returned[0]).__name__}. {mend}") from error
        first = str(error).strip().split("\n")[0][:200]
        raise TypeError(f"{told} raised {type(error).__name__}: {first}. {mend}") from error
    real = jnp.issubdtype(out.dtype, jnp.floating) or jnp.issubdtype(out.dtype, jnp.integer)
    if out.shape != () or not real:
        raise TypeError(f"{told} returned {out.dtype}{list(out.shape)}. {mend}")


def is_schedule(value: object) -> bool:
    """Whether a `value` is one of the schedules here."""
    return isinstance(value, AbstractSchedule)


def as_schedules(value) -> PyTree[AbstractSchedule]:
    """Apply `as_schedule` to each entry of a `value` that is a tuple, or to the value."""
    if isinstance(value, tuple):
        return jax.tree.map(as_schedule, value, is_leaf=is_schedule)
    return as_schedule(value)


class Times(AbstractSchedule):
    """A factor times another schedule."""

    factor: ScalarLike = eqx.field(converter=_array)
    schedule: AbstractSchedule

    @property
    def head(self):
        return self.factor

    def __call__(self, k: Count) -> Scalar:
        value = self.schedule(k)
        return jnp.asarray(self.factor).astype(value.dtype) * value

    def __repr__(self) -> str:
        return f"{shown(self.factor)}·({self.schedule!r})"


def times(factor: ScalarLike, schedule: AbstractSchedule) -> AbstractSchedule:
    """The schedule times a factor; a schedule of the same class if that class has a scale."""
    if isinstance(schedule, Constant):
        return Constant(factor * jnp.asarray(schedule.value))
    if isinstance(schedule, Polynomial):
        scale = factor * jnp.asarray(schedule.scale)
        return Polynomial(scale, schedule.power, schedule.start)
    return Times(factor, schedule)


def horizon(
    scale: ScalarLike, power: float, steps: int | None, start: float = 1
) -> AbstractSchedule:
    """A step size of order `K^(−power)`: constant if K = `steps` is known, else decaying with k.

    It is `scale K^(−power)`, or `Polynomial(scale, power, start)`.
    """
    return Polynomial(scale, power, start) if steps is None else Constant(scale * steps**-power)


def shown(value: object) -> str:
    """A number `value` in short form; the shape of an array that is traced or batched."""
    shape = getattr(value, "shape", ())
    known = isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
    if shape or not known or isinstance(value, Tracer):
        return f"<{'×'.join(map(str, shape)) or 'traced'}>"
    return f"{float(value):.4g}"


def first_one(schedule: AbstractSchedule, k: Count) -> Scalar:
    """The schedule, but 1 at k = 0, so that an average starts at its first term."""
    value = schedule(k)
    return jnp.where(k == 0, jnp.ones_like(value), value)


@dataclasses.dataclass(frozen=True)
class PolynomialCount:
    """`⌈(k + 1)^power⌉` lower steps at upper step k, and never more than `most`.

    The rule is fixed at compile time, like any number of steps. The loop length is only known at
    run time, so the loop cannot be differentiated in reverse mode.
    """

    power: float
    most: int = 100

    def __call__(self, k: Count) -> Int[Array, ""]:
        grown = (jnp.asarray(k).astype(jnp.float32) + 1) ** self.power
        whole = jnp.ceil(grown - 1e-4).astype(jnp.int32)  # 9^½ is 3, not 3.0000002
        return jnp.minimum(whole, self.most)


def steps_at(steps: "int | PolynomialCount", k: Count) -> "int | Int[Array, '']":
    """The number of lower steps at upper step k; a Python integer if it is fixed."""
    return steps if isinstance(steps, int) else steps(k)


def most_steps(steps: "int | PolynomialCount") -> int:
    """The largest number of lower steps in any upper step."""
    return steps if isinstance(steps, int) else steps.most
