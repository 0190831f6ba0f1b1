"""Settings that are looked at where they are written: numbers in their range, kinds, counts."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ScalarLike


class Range(NamedTuple):
    """Numbers that a setting may be, and how a refusal calls them."""

    holds: Callable[[Any], Any]  # of an array, entry by entry
    words: str
    infinite: bool = False


def count(default: Any = dataclasses.MISSING, *, least: int = 1, also: type | None = None) -> Any:
    """A static field that must be a whole number.

    Args:
        default: its default value; `None` for one that may be absent.
        least: smallest number that is allowed.
        also: another class whose objects are allowed.
    """
    metadata = {"least": least, "also": also}
    return eqx.field(static=True, metadata=metadata, **_default(default))


def positive(default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """A field of a number above zero; `how` is a converter, a `default_factory`, `infinite`."""
    return _number(lambda v: v > 0, "a positive number", default, **how)


def nonnegative(default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """A field of a number of at least zero."""
    return _number(lambda v: v >= 0, "a number of at least 0", default, **how)


# For `eqx.field(converter=as_schedule, metadata=NONNEGATIVE)`, whose converter type checkers see.
NONNEGATIVE = {"range": Range(lambda v: v >= 0, "a number of at least 0")}


def fraction(default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """A field of a number from 0 to 1."""
    return _number(lambda v: (v >= 0) & (v <= 1), "a number from 0 to 1", default, **how)


def finite(default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """A field of any finite number."""
    return _number(lambda v: v == v, "a finite number", default, **how)


class Checked(eqx.Module):
    """Base of everything with settings: refuses those that make no sense, by their name.

    A `bool` is `True` or `False`, an `int` a whole number, a module an instance of its class, as
    annotated; numbers lie in the range that their field declares. Values that are being traced are
    not looked at.

    Raises:
        TypeError: a setting of another kind, a class in place of an object for example.
        ValueError: a number out of range, or NaN.
    """

    def __check_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if told := _count_told(field, value) or _range_told(field, value):
                raise ValueError(told)
            if told := _kind_told(field, value):
                raise TypeError(told)


def as_number(value: ScalarLike) -> Array:
    """An array of a real number, or of several to sweep over.

    Raises:
        TypeError: something else, text or a truth value for example.
        ValueError: a whole number that no array holds.
    """
    if isinstance(value, str | bytes):
        raise TypeError(f"{shown(value)} is no number.")
    try:
        array = value if isinstance(value, Tracer) else jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{shown(value)} is no number.") from None
    except OverflowError:
        raise ValueError(f"{shown(value)} is too large for an array.") from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or array.dtype == bool:
        raise TypeError(f"{shown(value)} is of type {array.dtype}; a real number is needed.")
    return array


def optional(converter: Callable = as_number) -> Callable:
    """The converter, with `None` left as it is."""
    return lambda value: None if value is None else converter(value)


def check_number(what: str, value: Any, allowed: Range) -> str | None:
    """A sentence if a number, or some entry of an array, is not in a range."""
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        return None
    numbers = np.asarray(value).astype(float)
    if not numbers.size:
        return f"{what} holds no number; {allowed.words} is needed."
    fine = np.isfinite(numbers) | (allowed.infinite & ~np.isnan(numbers))
    if np.all(fine & allowed.holds(numbers)):
        return None
    told = f"{numbers.item():.6g}" if numbers.ndim == 0 else f"{numbers.tolist()}"
    return f"{what} is {told}; {allowed.words} is needed."


def _number(
    holds: Callable,
    words: str,
    default: Any,
    *,
    converter: Callable = as_number,
    infinite: bool = False,
    **how: Any,
) -> Any:
    metadata = {"range": Range(holds, words, infinite)}
    return eqx.field(converter=converter, metadata=metadata, **_default(default), **how)


def _default(default: Any) -> dict[str, Any]:
    return {} if default is dataclasses.MISSING else {"default": default}


def _count_told(field: dataclasses.Field, value: Any) -> str | None:
    least, also = field.metadata.get("least"), field.metadata.get("also")
    if least is None or (also is not None and isinstance(value, also)):
        return None
    if value is None and field.default is None:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least:
        return None
    return f"{field.name} is {shown(value)}; a whole number of at least {least} is needed."


def _range_told(field: dataclasses.Field, value: Any) -> str | None:
    """Of a number itself, of a schedule's first number."""
    allowed = field.metadata.get("range")
    value = getattr(value, "head", value)
    return None if allowed is None else check_number(field.name, value, allowed)


def _kind_told(field: dataclasses.Field, value: Any) -> str | None:
    kinds = () if "least" in field.metadata else _kinds(field.type)
    if not kinds or isinstance(value, kinds) or not isinstance(field.type, type | types.UnionType):
        return None
    if bool in kinds and isinstance(value, np.bool_):
        return None
    if int in kinds and isinstance(value, np.integer):
        return None
    names = " or ".join(map(_called, kinds))
    hint = f"; create one: {value.__name__}(...)" if isinstance(value, type) else ""
    told = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
    return f"{field.name} is {told}, and {names} is needed{hint}."


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The classes of an annotation, if it names nothing but modules, truth values and counts."""
    union = isinstance(annotation, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    looked_at = all(
        member in (bool, int, type(None))
        or (isinstance(member, type) and issubclass(member, eqx.Module))
        for member in members
    )
    return members if looked_at and members != (type(None),) else ()


def _called(kind: type) -> str:
    plain = {bool: "True or False", int: "a whole number", type(None): "None"}
    if kind in plain:
        return plain[kind]
    where = ".".join(kind.__module__.split(".")[:2])
    if kind.__name__.startswith("Abstract"):
        return f"an object of {where} ({kind.__name__.removeprefix('Abstract')})"
    return f"a {where}.{kind.__name__}"


def shown(value: Any) -> str:
    """What was given, short enough for a sentence."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."
