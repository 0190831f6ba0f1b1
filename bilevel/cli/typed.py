"""What a user names on the command line: a problem of a module, a method with its settings."""

import ast
import difflib
from concurrent.futures import Executor
from typing import Any, NamedTuple

from bilevel import jobs
from bilevel.data import Data
from bilevel.files import load_named
from bilevel.methods import AbstractMethod, all_methods
from bilevel.problem import Problem

PARTS = ("x0", "y0", "data", "metrics")


class Loaded(NamedTuple):
    """A problem and where to start."""

    problem: Problem
    x0: Any
    y0: Any
    data: Data | None
    metrics: Any


def load(text: str) -> Loaded:
    """The problem at `module:name`; the module is looked for in the working folder first.

    The name is a `bl.Problem`, whose module then also has `x0` and `y0`, and `data` and `metrics`
    where there are any; or something with these as attributes, such as a case of `bl.problems`; or
    a function without arguments that returns either.

    Raises:
        ValueError: the module cannot be imported, or has no such problem; in one sentence.
    """
    found, module = load_named(text)
    if callable(found) and not isinstance(found, Problem):
        found = _made(text, found)
    holder = module if isinstance(found, Problem) else found
    problem = found if isinstance(found, Problem) else getattr(found, "problem", None)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"{text} is {type(found).__name__}; a bl.Problem, an object with the attributes "
            "problem, x0 and y0, or a function that returns one is needed."
        )
    parts = {part: getattr(holder, part, None) for part in PARTS}
    for part in ("x0", "y0"):
        if parts[part] is None:
            where = f"module {module.__name__}" if holder is module else text
            raise ValueError(f"{where} has no {part}; a start is needed beside the problem.")
    if isinstance(parts["data"], tuple):  # rows of both levels, as cases of bl.problems hold them
        parts["data"] = Data(*parts["data"])
    return Loaded(problem, **parts)


def executor(text: str | None) -> Executor | None:
    """The executor at `module:name`, or the one that the function there returns.

    Raises:
        ValueError: there is none; in one sentence.
    """
    if text is None:
        return None
    found = load_named(text).value
    if not hasattr(found, "submit") and callable(found):
        found = _made(text, found)
    try:
        jobs.check_executor(found)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from error
    return found


def _made(text: str, function: Any) -> Any:
    try:
        return function()
    except Exception as error:  # the user's own code
        raise ValueError(
            f"{text} is called without arguments, and raised {type(error).__name__}: {error}"
        ) from error


def method_class(name: str) -> type[AbstractMethod]:
    """The method of a name; upper and lower case are the same.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    classes = {m.__name__: m for m in all_methods() if m.__module__.startswith("bilevel.")}
    alike = {known.lower(): known for known in classes}
    if name.lower() in alike:
        return classes[alike[name.lower()]]
    near = difflib.get_close_matches(name.lower(), alike, n=1)
    hint = f"Did you mean {alike[near[0]]}?" if near else "`bilevel methods` lists all."
    raise ValueError(f"there is no method {name}. {hint}")


def method(text: str) -> type[AbstractMethod] | AbstractMethod:
    """`SOBA`, the class, or `SOBA(x_update=0.1, lower_steps=5)`, a method with settings.

    Raises:
        ValueError: there is no such method, or the settings are no plain values of its own.
    """
    if "(" not in text:
        return method_class(text.strip())
    wanted = f"{text!r} is not read; a name with plain values is needed, SOBA(x_update=0.1)."
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(wanted) from error
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
        raise ValueError(wanted)
    kind = method_class(call.func.id)
    try:
        settings = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        return kind(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{text}: {error}") from error
