"""Settings as plain dataclasses: every option is declared once, as a documented field.

    @dataclass(frozen=True, kw_only=True)
    class Training(Settings):
        '''Training.'''

        steps: Annotated[int, Bounds(least=1)] = 200
        '''Number of updates.'''

The string below a field is its documentation. Values are checked when an object is made. The
command line, configuration files, reports and the docs are all read off `options(Training)`.
"""

import ast
import dataclasses
import enum
import functools
import inspect
import math
import numbers
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin


class Bounds(NamedTuple):
    """Where a number must lie."""

    least: float | None = None
    most: float | None = None
    above: float | None = None  # a least value that is not allowed itself
    infinite: bool = False  # whether it may be infinite

    def hold(self, *values: float) -> bool:
        """Whether numbers lie there; NaN lies nowhere."""
        return all(
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            for value in values
        )

    def __str__(self) -> str:
        if self.above is not None:
            most = "" if self.most is None else f" and at most {self.most:g}"
            return f"above {self.above:g}{most}"
        if self.most is None:
            return f"of at least {self.least:g}"
        return f"from {self.least:g} to {self.most:g}"


class Argument(NamedTuple):
    """Marks a field whose value is typed without its name."""


class Several(NamedTuple):
    """Marks a list whose values may follow its name one after another, as in `--files a b c`."""


class Option(NamedTuple):
    """What a field declares."""

    name: str
    kind: Any  # its type, without `None`
    optional: bool  # whether it may be `None`
    default: Any  # `dataclasses.MISSING` where a value is required
    bounds: Bounds | None
    group: str  # first line of the docstring of the class that declares it, or empty
    about: str
    argument: bool
    several: bool = False

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def plain(self) -> bool:
        """Whether the default is worth no word: none, no, or an empty list."""
        return self.default is None or self.default is False or self.default == ()

    @property
    def flag(self) -> str:
        return "--" + self.name.rstrip("_").replace("_", "-")  # `for_` is --for

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(one.value for one in self.kind) if _is_enum(self.kind) else ()

    @property
    def needed(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"{WORDS[self.kind]} {self.bounds or ''}".strip()

    def parse(self, text: str) -> Any:
        """The value that is typed as `text` after the option."""
        return self.check(self._read(text, self.flag), self.flag)

    def convert(self, value: Any, where: str) -> Any:
        """The value that a configuration file holds."""
        if isinstance(value, str) and self.kind not in NUMBERS and self.kind not in (bool, Strings):
            value = self._read(value, where)
        return self.check(tuple(value) if isinstance(value, list) else value, where)

    def _read(self, text: str, where: str) -> Any:
        try:
            return (READERS.get(self.kind) or self.kind)(text)
        except ValueError as error:
            raise self._refusal(text, where) from error

    def check(self, value: Any, where: str) -> Any:
        """The value, where it is of the kind and within the bounds.

        Raises:
            ValueError: it is not; what is needed, in one sentence.
        """
        if value is None and self.optional:
            return value
        bounds = self.bounds or Bounds()
        if not _is_a(value, self.kind) or not bounds.hold(*_numbers(value, self.kind)):
            raise self._refusal(value, where)
        if any(map(math.isinf, _numbers(value, self.kind))) and not bounds.infinite:
            raise ValueError(f"{where} is {value}; a finite number is needed.")
        return self.kind(value) if self.kind in NUMBERS else value

    def _refusal(self, value: Any, where: str) -> ValueError:
        verb = ", such as 4,2, are" if self.kind == Pair else " is"
        return ValueError(f"{where} is {shown(value)!r}; {self.needed}{verb} needed.")


Pair, Strings = tuple[int, int], tuple[str, ...]
WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path",
    Pair: "two whole numbers", Strings: "a list of texts",
}  # fmt: skip


def _pair(text: str) -> tuple[int, ...]:
    """`4,2`, or `4` for `4,1`."""
    found = tuple(int(part) for part in text.split(","))
    return found if len(found) > 1 else (*found, 1)


READERS: dict[Any, Callable[[str], Any]] = {Pair: _pair}
NUMBERS = {int: numbers.Integral, float: numbers.Real}  # those of NumPy are numbers, too


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_a(value: Any, kind: Any) -> bool:
    if kind == Pair:
        return isinstance(value, tuple) and len(value) == 2 and all(_is_a(n, int) for n in value)
    if kind == Strings:
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, NUMBERS.get(kind, kind))


def _numbers(value: Any, kind: Any) -> tuple[float, ...]:
    """Those that bounds are for."""
    return value if kind == Pair else (value,) if kind in NUMBERS else ()


def shown(value: Any) -> Any:
    """A value as a person would write it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, Path) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of options, checked when the object is made.

    Raises:
        ValueError: a value is of a wrong type or out of its bounds.
    """

    def __post_init__(self):
        for option in options(type(self)):
            value = option.check(getattr(self, option.name), option.name)
            object.__setattr__(self, option.name, value)


@functools.cache
def options(settings: type[Settings]) -> tuple[Option, ...]:
    """The options of a dataclass, group by group; groups in the order of its bases."""
    homes = [home for home in settings.__mro__ if dataclasses.is_dataclass(home)]
    texts = {name: text for home in reversed(homes) for name, text in _texts(home).items()}
    groups = {
        name: "" if home is settings else (home.__doc__ or "").partition("\n")[0].rstrip(".")
        for home in reversed(homes)
        for name in home.__annotations__
    }
    hints = typing.get_type_hints(settings, include_extras=True)
    found = [
        _option(field, hints[field.name], groups[field.name], texts.get(field.name, ""))
        for field in dataclasses.fields(settings)
    ]
    order = list(dict.fromkeys(groups[name] for home in homes for name in home.__annotations__))
    return tuple(sorted(found, key=lambda option: order.index(option.group)))


def _option(field: dataclasses.Field, hint: Any, group: str, about: str) -> Option:
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is typing.Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    optional = get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), None)
    argument, several = (any(isinstance(m, kind) for m in marks) for kind in (Argument, Several))
    return Option(
        field.name, hint, optional, field.default, bounds, group, about, argument, several
    )


def _texts(settings: type) -> dict[str, str]:
    """The strings below the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def from_file(settings: type[Settings], path: Path) -> dict[str, Any]:
    """Values of options from a TOML file; `held-out` and `held_out` are the same.

    Raises:
        ValueError: it cannot be read, or has an unknown key or a wrong value.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    return from_mapping(settings, content, str(path))


def from_mapping(settings: type[Settings], content: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Values of options from what a configuration file holds."""
    known = {option.name.rstrip("_"): option for option in options(settings)}
    found = {}
    for key, value in content.items():
        if (name := key.replace("-", "_")) not in known:
            raise ValueError(f"{path} has an unknown key {key!r}. {_nearest(name, known)}")
        found[known[name].name] = known[name].convert(value, f"{path}: {key}")
    return found


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."


def rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value and meaning of every option, for a report."""
    return [
        (option.name, "–" if value in (None, ()) else str(shown(value)), option.about)
        for option in options(type(settings))
        for value in (getattr(settings, option.name),)
    ]


def markdown(settings: type[Settings]) -> str:
    """The options of a command as a Markdown table."""
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for option in options(settings):
        default = "required" if option.required else "" if option.plain else shown(option.default)
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        lines.append(f"| `{option.flag}` | {default} | {option.about}{choices} |")
    return "\n".join(lines)
