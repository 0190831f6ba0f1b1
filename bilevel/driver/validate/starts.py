"""Where a run begins, and the sets beside it."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from bilevel import trees
from bilevel.driver.validate.functions import first_line, shape
from bilevel.fields import shown
from bilevel.problem import Problem
from bilevel.sets import AbstractSet, Intersection


def check_rows(problem: Problem, y: Any) -> None:
    """Every leaf of y has a row for each block of the problem."""
    m = problem.blocks
    for path, leaf in tree_leaves_with_path(y) if m is not None else ():
        if jnp.shape(leaf)[:1] != (m,):
            raise ValueError(
                f"y0{keystr(path)} is {shape(leaf)}, and the problem declares blocks={m}: every "
                f"leaf of y0 needs a leading axis of {m}, one row a block."
            )


def check_start(problem: Problem, x0: Any, y0: Any) -> tuple[Any, Any]:
    """The starting points, looked at, in arrays of their own."""
    for name, value in (("x0", x0), ("y0", y0)):
        if value is None:
            raise ValueError(f"{name} is missing: give x0 and y0, or state.")
        check_variable(name, value)
    _warn_of_single_precision((x0, y0))
    x0, y0 = trees.copy((x0, y0))
    check_rows(problem, y0)
    check_sets(problem, x0, y0)
    return x0, y0


def _warn_of_single_precision(start: Any) -> None:
    """NumPy's default is double precision, JAX's is single: say so, once at each place."""
    double = any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(start))
    if double and not jax.config.read("jax_enable_x64"):
        warnings.warn(
            "x0 or y0 is float64, and JAX computes in float32 unless it is told otherwise: call "
            "jax.config.update('jax_enable_x64', True) first, or pass float32 arrays.",
            stacklevel=2,
        )


def check_variable(name: str, tree: Any) -> None:
    """A starting point: at least one array, all floating, all finite."""
    leaves = tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} holds no arrays; a pytree of floating arrays is needed.")
    for path, leaf in leaves:
        label = f"{name}{keystr(path)}"
        if isinstance(leaf, int) and not isinstance(leaf, bool) and abs(leaf) > 2**62:
            raise ValueError(f"{label} is {shown(leaf)}; a floating number is needed.")
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(
                f"{label} is of type {type(leaf).__name__}; an array is needed. Split a module "
                "first: eqx.partition(model, eqx.is_inexact_array)."
            ) from None
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{label} is {shape(leaf)}; only floating arrays can be optimised. Convert it, "
                f"for example with .astype(float), or keep it out of {name}."
            )
        if not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"{label} contains a NaN or an infinity; start from a finite point.")


def check_state(state: Any) -> None:
    if not all(hasattr(state, name) for name in ("x", "y", "k")):
        raise TypeError(
            f"state is of type {type(state).__name__}; a method's state is needed, such as "
            "result.state or what method.init returns."
        )


def check_sets(problem: Problem, x: Any, y: Any) -> None:
    """The sets fit the variables' shapes, and their constraints are real numbers."""
    for name, a_set, z in (
        ("upper_set", problem.upper_set, x),
        ("lower_set", problem.lower_set, y),
    ):
        if a_set.projectable:
            out = _of_set(name, a_set, a_set.project, z, x if name == "lower_set" else None)
            if jax.tree.map(jnp.shape, out) != jax.tree.map(jnp.shape, z):
                raise ValueError(
                    f"{name} ({type(a_set).__name__}) turns {_variable(name)}0 = {shape(z)} into "
                    f"{shape(out)}; check the shapes of its fields."
                )
        for member in a_set.sets if isinstance(a_set, Intersection) else (a_set,):
            at = (y, x) if name == "lower_set" or member.moves else (x, None)
            _check_constraints(name, member, *at)


def _check_constraints(name: str, a_set: AbstractSet, z: Any, other: Any) -> None:
    """What a set's functions return, at a point."""
    values = _of_set(name, a_set, a_set.constraints, z, other)
    called = f"{name} ({type(a_set).__name__})"
    for part in values:
        if part is None:
            raise TypeError(
                f"{called}: a constraint function returned None; arrays of numbers are needed. "
                "Is a return missing?"
            )
        for leaf in jax.tree.leaves(part, is_leaf=lambda leaf: leaf is None):
            told = "None" if leaf is None else shape(leaf)
            if leaf is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"{called}: a constraint function returned {told}; floating numbers are "
                    "needed, the amount by which h(x, y) <= 0 is violated."
                )


def _of_set(name: str, a_set: AbstractSet, fn: Callable, z: Any, other: Any) -> Any:
    try:
        return jax.eval_shape(fn, z, other)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name} ({type(a_set).__name__}) does not fit {_variable(name)}0 = {shape(z)}: "
            f"{first_line(error)}"
        ) from error


def _variable(name: str) -> str:
    return {"upper_set": "x", "lower_set": "y"}[name]
