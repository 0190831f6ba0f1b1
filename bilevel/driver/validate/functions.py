"""What a user's function is called with, and what it returns."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial


def check_arity(name: str, fn: Callable, arguments: tuple[str, ...]) -> None:
    fn = fn.func if isinstance(fn, Partial) and not fn.args and not fn.keywords else fn
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    call = f"{name}({', '.join(arguments)})"
    try:
        signature.bind(*arguments)
    except TypeError:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        n = sum(p.kind in positional for p in signature.parameters.values())
        mend = (
            "Add a third; it is None when there is no data."
            if n == 2 and len(arguments) == 3
            else f"Give it {number(len(arguments))}."
        )
        raise TypeError(
            f"{name} is called as {call} but takes {number(n)} "
            f"argument{'s' if n != 1 else ''}. {mend}"
        ) from None


def check_scalar(name: str, out: Any, mend: str, floating: bool = True) -> None:
    if jax.tree.structure(out) != jax.tree.structure(0):
        hint = {tuple: " Return the loss alone.", type(None): " Is a return missing?"}
        told = "None" if out is None else f"a {type(out).__name__}"
        raise TypeError(f"{name} returned {told}; a scalar is needed.{hint.get(type(out), '')}")
    if out.shape != ():
        raise TypeError(f"{name} returned {shape(out)}; a scalar is needed. {mend}")
    if floating and not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"{name} returned {shape(out)}; a floating scalar is needed.")


def trace(name: str, fn: Callable, *args: Any):
    try:
        return jax.make_jaxpr(fn, return_shape=True)(*args)
    except Exception as error:
        told = ", ".join(
            f"{label} = {shape(arg)}" for label, arg in zip(("x", "y", "batch"), args, strict=False)
        )
        forgotten = len(args) == 3 and args[2] is None
        hint = ". It got no data: give bl.Data(upper=..., lower=...)" if forgotten else ""
        raise ValueError(
            f"{name} could not be evaluated at {told}: {type(error).__name__}: "
            f"{first_line(error)}{hint}"
        ) from error


def shape(tree: Any) -> str:
    """A tree as shapes: float32[3], {w: float32[3,2], b: float32[2]}."""

    def leaf(value) -> str:
        dtype = jnp.result_type(value)
        return f"{dtype.name}[{','.join(map(str, jnp.shape(value)))}]"

    if tree is None:
        return "None"
    shapes = jax.tree.map(leaf, tree)
    return str(shapes).replace("'", "")


def first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return line if len(line) <= 300 else f"{line[:297]}..."


def number(n: int) -> str:
    return {0: "no", 1: "one", 2: "two", 3: "three", 4: "four"}.get(n, str(n))
