"""Small bilevel problems as text: expressions over `x[i]` and `y[i]`, read without `eval`."""

import ast
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import sets
from bilevel.problem import Problem

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
SIGNS = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS = {
    "exp": 1,
    "log": 1,
    "sqrt": 1,
    "sin": 1,
    "cos": 1,
    "tan": 1,
    "Abs": 1,
    "Min": 2,
    "Max": 2,
}
LONG_NAMES = {"Abs": "abs", "Min": "minimum", "Max": "maximum"}
ALLOWED = f"numbers, pi, x[i], y[i], + - * / **, {', '.join(FUNCTIONS)}"
LISTS = ("upper_ineq", "upper_eq", "lower_ineq", "lower_eq")

Expression = Callable[[Array, Array], Any]


class Textbook(NamedTuple):
    """One problem of a file: the `bl.Problem`, a start, and the known solution."""

    name: str
    problem: Problem
    x0: Array
    y0: Array
    upper_best: float | None  # the best known upper value; `None` when nobody knows one
    status: str  # of that value: "global", "best-known", "unknown"
    entry: Mapping[str, Any]  # as it stands in the file


def parse(
    text: str, nx: int, ny: int, where: str = "expression", *, functions: Any = jnp
) -> Expression:
    """A function of (x, y) from text such as `x[0]**2 + exp(-y[1])`.

    Args:
        nx, ny: how many entries x and y have.
        where: location for error messages.
        functions: module of `exp`, `log`, ...: `jax.numpy` or `numpy`.

    Raises:
        ValueError: the text is not in the small language; the message has the offending part.
    """
    if not isinstance(text, str):
        raise ValueError(f"{where} is {text!r}; an expression as text is needed.")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{where}: {text!r} is not an expression.") from None
    try:
        return _built(tree, {"x": nx, "y": ny}, text.strip(), where, functions)
    except RecursionError:
        raise ValueError(f"{where}: the expression is nested too deeply to be read.") from None


def _built(
    node: ast.expr, sizes: Mapping[str, int], text: str, where: str, functions: Any
) -> Expression:
    def refuse(why: str) -> ValueError:
        return ValueError(f"{where}: {ast.get_source_segment(text, node)!r} {why}")

    def part(child: ast.expr) -> Expression:
        return _built(child, sizes, text, where, functions)

    match node:
        case ast.Constant(value=int() | float() as value) if _is_number(value):
            number = float(value)
            return lambda x, y: number
        case ast.Name(id="pi"):
            return lambda x, y: math.pi
        case ast.UnaryOp(op=op, operand=inner) if type(op) in SIGNS:
            sign, value = SIGNS[type(op)], part(inner)
            return lambda x, y: sign(value(x, y))
        case ast.BinOp(left=left, op=ast.Pow(), right=right) if (
            power := _whole(right)
        ) is not None:
            # A whole power is multiplied out, so that its derivative at zero is a number.
            base = part(left)
            return lambda x, y: base(x, y) ** power
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            apply, a, b = OPERATORS[type(op)], part(left), part(right)
            return lambda x, y: apply(a(x, y), b(x, y))
        case ast.Subscript(value=ast.Name(id=("x" | "y") as name), slice=ast.Constant(value=i)) if (
            type(i) is int
        ):
            if not 0 <= i < sizes[name]:
                raise refuse(f"is out of range: {name} has {sizes[name]} entries, from 0.")
            return (lambda x, y: x[i]) if name == "x" else (lambda x, y: y[i])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            function, count = getattr(functions, LONG_NAMES.get(name, name)), FUNCTIONS[name]
            if len(args) != count:
                raise refuse(f"gives {name} {len(args)} arguments; it takes {count}.")
            values = [part(a) for a in args]
            return lambda x, y: function(*(value(x, y) for value in values))
    raise refuse(f"is not allowed. An expression holds {ALLOWED}.")


def _whole(node: ast.expr) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if float(value).is_integer() and abs(value) <= 64 else None


class _Stacked:
    """Several expressions as one vector."""

    def __init__(self, expressions: Sequence[Expression], sign: float = 1.0):
        self._expressions, self._sign = tuple(expressions), sign

    def __call__(self, x: Array, y: Array) -> Array:
        values = [self._sign * e(x, y) for e in self._expressions]
        return jnp.stack([jnp.asarray(value, y.dtype) for value in values])


class _Loss:
    def __init__(self, expression: Expression):
        self._expression = expression

    def __call__(self, x: Array, y: Array, batch: Any) -> Array:
        return jnp.asarray(self._expression(x, y), y.dtype)


def read(entry: Any, where: str = "problem") -> Textbook:
    """One problem of a file, checked item by item.

    Raises:
        ValueError: an item is missing or wrong.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is a {type(entry).__name__}; an object is needed.")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.name is {name!r}; a text is needed.")
    where = name

    def item(key: str) -> Any:
        if key not in entry:
            raise ValueError(f"{where}: {key} is missing.")
        return entry[key]

    def count(key: str, least: int) -> int:
        value = item(key)
        if type(value) is not int or value < least:
            raise ValueError(
                f"{where}: {key} is {value!r}; a whole number of at least {least} is needed."
            )
        return value

    nx, ny = count("nx", 0), count("ny", 1)

    def numbers(key: str, size: int) -> Array:
        value = item(key)
        if not isinstance(value, list) or len(value) != size:
            raise ValueError(f"{where}: {key} is {value!r}; a list of {size} numbers is needed.")
        for i, number in enumerate(value):
            if not _is_number(number):
                raise ValueError(f"{where}: {key}[{i}] is {number!r}; a finite number is needed.")
        return jnp.asarray(np.asarray(value, float))

    def expressions(key: str) -> list[Expression]:
        value = item(key)
        if not isinstance(value, list):
            raise ValueError(f"{where}: {key} is {value!r}; a list of expressions is needed.")
        return [parse(text, nx, ny, f"{where}: {key}[{i}]") for i, text in enumerate(value)]

    losses = [_Loss(parse(item(key), nx, ny, f"{where}: {key}")) for key in ("upper", "lower")]
    x0, y0 = numbers("x_start", nx), numbers("y_start", ny)
    upper_ineq, upper_eq, lower_ineq, lower_eq = map(expressions, LISTS)
    best = entry.get("upper_best")
    if best is not None and not _is_number(best):
        raise ValueError(f"{where}: upper_best is {best!r}; a finite number or null is needed.")
    problem = Problem(
        *losses, upper_set=_set(upper_ineq, upper_eq), lower_set=_set(lower_ineq, lower_eq)
    )
    return Textbook(
        name,
        problem,
        x0,
        y0,
        None if best is None else float(best),
        str(entry.get("status", "")),
        entry,
    )


def load(path: str | Path) -> list[Textbook]:
    """All problems of a JSON file: a list of them, or an object that holds it as `problems`.

    Each has `name, nx, ny, upper, lower`, the lists `upper_ineq (>= 0), upper_eq (= 0), lower_ineq
    (>= 0), lower_eq (= 0)`, `x_start, y_start`, and where known `upper_best` and `status`.

    Raises:
        ValueError: the file cannot be read, or an item is wrong; the place is named.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    entries = content.get("problems") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} holds no list of problems.")
    found = [read(entry, f"problems[{i}]") for i, entry in enumerate(entries)]
    names = [book.name for book in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: two problems are called {name}.")
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _set(inequalities: list[Expression], equations: list[Expression]) -> sets.AbstractSet | None:
    if not inequalities and not equations:
        return None
    return sets.Coupled(
        _Stacked(inequalities, -1.0) if inequalities else None,
        equalities=_Stacked(equations) if equations else None,
    )
